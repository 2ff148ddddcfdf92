"""The HTML page of a leaderboard: what there is to show of each data set, and its template."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from smallvit.leaderboard.board import Evidence, Leaderboard
from smallvit.leaderboard.comparison import Comparison
from smallvit.leaderboard.figures import natural_key
from smallvit.leaderboard.published import Reference, published_name
from smallvit.leaderboard.report_columns import (
    Band,
    figure_names,
    lower_is_better,
    table_bands,
)
from smallvit.leaderboard.report_panels import (
    ATTACKS,
    CorruptionPart,
    attack_plots,
    corruption_part,
    few_label_plots,
    row_titles,
)
from smallvit.leaderboard.report_plots import (
    FULL_AXIS,
    NUM_STYLES,
    Axis,
    Dash,
    LinePlot,
    Reliability,
    fit_axis,
    format_tick,
    whisker,
)
from smallvit.leaderboard.report_text import (
    format_commit,
    format_count,
    format_difference,
    format_p,
    format_percent,
    format_spread,
    format_time,
    row_labels,
)
from smallvit.leaderboard.rows import ARMS, Entry, Row, distinct

# Above this many classes a confusion matrix is a list of the most confused pairs.
MAX_MATRIX_CLASSES = 20
NUM_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What is shown of a single row.

    Attributes:
        label: Of the row.
        best: Whether no row of the dataset has a higher mean accuracy.
        evidence: What it is drawn of.
    """

    label: str
    best: bool
    evidence: Evidence

    @property
    def attention(self) -> str | None:
        """The attention picture as an address that holds the picture itself."""
        png = self.evidence.attention
        return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"

    @property
    def matrix(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Each true class with the count and the part of its images by predicted class."""
        names, confusion = self.evidence.class_names, self.evidence.confusion
        if len(names) > MAX_MATRIX_CLASSES:
            return []
        return [
            (name, [(count, count / max(sum(counts), 1)) for count in counts])
            for name, counts in zip(names, confusion, strict=True)
        ]

    @property
    def pairs(self) -> list[tuple[str, str, int, float]]:
        """The most confused pairs: true class, predicted class, count, part of the true class."""
        names, confusion = self.evidence.class_names, self.evidence.confusion
        pairs = [
            (names[true], names[predicted], count, count / sum(counts))
            for true, counts in enumerate(confusion)
            for predicted, count in enumerate(counts)
            if true != predicted and count
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:NUM_PAIRS]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page says of one dataset.

    Attributes:
        dataset: Name of the dataset.
        rows: Its rows.
        entries: Its runs.
        labels: What to call each row: its arm, and what else tells it apart.
        titles: That alone, or nothing.
        zoom: Axis of the magnified figure.
        bands: Columns of its table.
        lower: Columns in which a small figure is the good one.
        comparisons: Paired tests between its rows.
        references: Published accuracies.
        corruption_references: Published figures on corrupted images.
        measured_on: Dataset of the published figures, where it is not this one.
        legend: Arms that are drawn as lines, with their style.
        few_label_plots: Accuracy over the part of the labels.
        corruptions: Accuracy on corrupted images, by origin.
        attack_plots: Accuracy over the strength of an attack.
        attacks: Names of the attacks that are drawn, with how their lines are broken.
        reliabilities: Accuracy over confidence.
        details: Confusion and attention of single rows.
    """

    dataset: str
    rows: Sequence[Row]
    entries: Sequence[Entry]
    labels: Sequence[str]
    titles: Sequence[str]
    zoom: Axis
    bands: Sequence[Band]
    lower: Sequence[str]
    comparisons: Sequence[Comparison]
    references: Sequence[Reference]
    corruption_references: Sequence[Reference]
    measured_on: str | None
    legend: Sequence[tuple[str, int]]
    few_label_plots: Sequence[LinePlot]
    corruptions: Sequence[CorruptionPart]
    attack_plots: Sequence[LinePlot]
    attacks: Sequence[tuple[str, Dash]]
    reliabilities: Sequence[Reliability]
    details: Sequence[Detail]

    @property
    def models(self) -> list[str]:
        """Each model with its number of parameters."""
        return distinct(f"{row.model}, {row.params:,} parameters" for row in self.rows)

    @property
    def test_sizes(self) -> list[str]:
        """The numbers of test images; a single one unless the splits differ."""
        return distinct(f"{row.n_test:,}" for row in self.rows)

    @property
    def yardsticks(self) -> list[str]:
        """What naming the commonest class of the test images always would score."""
        return distinct(
            f"{row.commonest} always: {format_percent(row.commonest_share)} %"
            for row in self.rows
            if row.commonest_share is not None
        )

    @property
    def seeds(self) -> list[int]:
        """The different seeds of the runs."""
        return sorted({entry.seed for entry in self.entries})

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The address and the heading of each part after the table."""
        parts = {
            "comparisons": ("Paired comparisons", self.comparisons),
            "labels": ("Few labels", self.few_label_plots),
            "corruptions": ("Corruptions", self.corruptions),
            "attacks": ("Attacks", self.attack_plots),
            "calibration": ("Calibration", self.reliabilities),
            "details": ("Classes and attention", self.details),
            "published": ("Published figures", self.references),
        }
        return [(slug, name) for slug, (name, content) in parts.items() if content]


def render_html(leaderboard: Leaderboard) -> str:
    """Return a page that needs no other file and no network."""
    rows, entries = leaderboard.rows, leaderboard.entries
    return _template().render(
        title=leaderboard.title,
        verdict=leaderboard.verdict,
        warnings=leaderboard.warnings,
        notes=leaderboard.notes,
        sections=_sections(leaderboard),
        full_axis=FULL_AXIS,
        measured=_measured(rows, entries),
        protocol=leaderboard.protocol,
        paired=bool(leaderboard.comparisons),
        entries=entries,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("smallvit.leaderboard", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "time": format_time,
        "count": format_count,
        "spread": format_spread,
        "whisker": whisker,
        "commit": format_commit,
        "difference": format_difference,
        "p": format_p,
        "tick": format_tick,
        "typeset": _typeset,
        "unbroken": _unbroken,
    }
    return environment.get_template("report.html.j2")


def _sections(leaderboard: Leaderboard) -> list[Section]:
    unknown = set(leaderboard.evidence) - {row.key for row in leaderboard.rows}
    assert not unknown, f"evidence of no row: {unknown}"
    arms = distinct([*ARMS.values(), *(row.arm for row in leaderboard.rows)])
    styles = {arm: place % NUM_STYLES for place, arm in enumerate(arms)}
    return [
        _section(dataset, list(group), leaderboard, styles)
        for dataset, group in groupby(leaderboard.rows, key=lambda row: row.dataset)
    ]


def _section(
    dataset: str, rows: list[Row], leaderboard: Leaderboard, styles: Mapping[str, int]
) -> Section:
    labels = row_labels(rows)
    entries = [entry for entry in leaderboard.entries if entry.shown_dataset == dataset]
    name = published_name(entries[0].dataset)
    references = [each for each in leaderboard.references if each.dataset == name]
    corruptions = [
        part
        for origin in ("official", "generated")
        if (part := corruption_part(origin, rows, labels, styles))
    ]
    shown = [
        Detail(label=label, best=row.best, evidence=leaderboard.evidence[row.key])
        for label, row in zip(labels, rows, strict=True)
        if row.key in leaderboard.evidence
    ]
    drawn = {path.split("/")[1] for path in figure_names(rows) if path.startswith("attack/")}
    return Section(
        dataset=dataset,
        rows=rows,
        entries=entries,
        labels=labels,
        titles=row_titles(rows),
        zoom=fit_axis(end for row in rows for end in whisker(row)),
        bands=table_bands(rows),
        lower=lower_is_better(rows),
        comparisons=[each for each in leaderboard.comparisons if each.dataset == dataset],
        references=_ranked(each for each in references if not each.of_corruptions),
        corruption_references=_ranked(each for each in references if each.of_corruptions),
        measured_on=None if name == entries[0].dataset else name,
        legend=[(arm, styles[arm]) for arm in distinct(row.arm for row in rows)],
        few_label_plots=few_label_plots(rows, styles),
        corruptions=corruptions,
        attack_plots=attack_plots(rows, styles),
        attacks=[ATTACKS[name] for name in ATTACKS if name in drawn],
        reliabilities=[
            Reliability(
                name=each.label,
                bins=each.evidence.reliability,
                scaled=each.evidence.reliability_scaled,
            )
            for each in shown
        ],
        details=shown,
    )


def _ranked(references: Iterable[Reference]) -> list[Reference]:
    """All labels first, then fewer; the best first."""
    return sorted(
        references,
        key=lambda each: (
            each.labels != "all labels",
            natural_key(each.metric),
            each.value if each.of_corruptions else -each.value,
        ),
    )


def _measured(rows: Sequence[Row], entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """Return the facts of the section on how it was measured: a name and its values."""
    test, passes = [], []
    for dataset, group in groupby(rows, key=lambda row: row.dataset):
        shown = list(group)
        hashes = distinct(e.split_hash[:12] for e in entries if e.shown_dataset == dataset)
        counts = distinct(f"{row.n_test:,}" for row in shown)
        test.append(f"{dataset}: {' or '.join(counts)} images, split {', '.join(hashes)}")
        texts = [_format_passes(row) for row in shown]
        if len(set(texts)) == 1:
            every = ", each row" if len(shown) > 1 else ""
            passes.append(f"{dataset}{every}: {texts[0]}")
        else:
            labels = row_labels(shown)
            passes += [f"{dataset}, {labels[i]}: {text}" for i, text in enumerate(texts)]
    return [
        ("Test images", test),
        ("Training, stage 2", passes),
        ("Seeds", [", ".join(str(seed) for seed in sorted({e.seed for e in entries}))]),
        ("Extra data", distinct(entry.extra_data for entry in entries)),
        ("Machine", distinct(f"{e.machine}; {e.device}, {e.precision}" for e in entries)),
        (
            "Commit",
            distinct(e.commit + (" + uncommitted changes" if e.dirty else "") for e in entries),
        ),
    ]


def _format_passes(row: Row) -> str:
    passes = f"{row.mean('samples_seen') / row.num_labels:,.1f}".removesuffix(".0")
    return f"{passes} passes over {row.num_labels:,} labelled images"


def _typeset(text: str) -> str:
    """The sentences are ASCII for any terminal; a page can show the sign itself."""
    return text.replace(" +- ", " \u00b1 ")


def _unbroken(text: str) -> str:
    """Keep a number and its sign on one line."""
    return text.replace(" %", "\u00a0%")
