"""The pages of a leaderboard: what there is to show of each data set, and the templates for it."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from smallvit.leaderboard.board import Evidence, Leaderboard
from smallvit.leaderboard.figures import natural_key
from smallvit.leaderboard.published import Reference, published_name
from smallvit.leaderboard.report_columns import figure_names, lower_is_better, table_bands
from smallvit.leaderboard.report_panels import (
    ATTACKS,
    attack_plots,
    corruption_part,
    few_label_plots,
)
from smallvit.leaderboard.report_plots import (
    FULL_AXIS,
    NUM_STYLES,
    fit_axis,
    format_tick,
    reliability_dots,
    whisker,
)
from smallvit.leaderboard.report_text import (
    format_commit,
    format_commonest,
    format_count,
    format_difference,
    format_labels,
    format_p,
    format_percent,
    format_spread,
    format_time,
    row_labels,
    row_titles,
    spread_name,
)
from smallvit.leaderboard.rows import ARMS, Row, distinct

NUM_PAIRS = 12  # of classes that are confused


def render_html(leaderboard: Leaderboard) -> str:
    """Return a page that needs no other file and no network."""
    entries = leaderboard.entries
    return _render(
        "report.html.j2",
        leaderboard,
        full_axis=FULL_AXIS,
        seeds=sorted({each.seed for each in entries}),
        extra_data=distinct(each.extra_data for each in entries),
        machines=distinct(f"{each.machine}; {each.device}, {each.precision}" for each in entries),
        commits=distinct(each.commit + " + uncommitted changes" * each.dirty for each in entries),
    )


def render_markdown(leaderboard: Leaderboard) -> str:
    """Return a page of tables, as GitHub shows it."""
    return _render("report.md.j2", leaderboard)


def render_summary(leaderboard: Leaderboard, page: Path) -> str:
    """Return a table of the accuracies and the verdict as a piece of HTML, for a notebook."""
    return _render("report_summary.html.j2", leaderboard, page=page)


def _render(template: str, leaderboard: Leaderboard, **more: Any) -> str:
    unknown = set(leaderboard.evidence) - {row.key for row in leaderboard.rows}
    assert not unknown, f"evidence of no row: {unknown}"
    arms = distinct([*ARMS.values(), *(row.arm for row in leaderboard.rows)])
    styles = {arm: index % NUM_STYLES for index, arm in enumerate(arms)}
    sections = [
        _section(dataset, list(group), leaderboard, styles)
        for dataset, group in groupby(leaderboard.rows, key=lambda row: row.dataset)
    ]
    return _templates().get_template(template).render(vars(leaderboard), sections=sections, **more)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("smallvit.leaderboard", ""),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "time": format_time,
        "count": format_count,
        "spread": format_spread,
        "spread_name": spread_name,
        "commonest": format_commonest,
        "labels": format_labels,
        "whisker": whisker,
        "dots": reliability_dots,
        "commit": format_commit,
        "difference": format_difference,
        "p": format_p,
        "tick": format_tick,
        "confused": _confused,
        "inline": _inline,
        "typeset": _typeset,
        "unbroken": _unbroken,
        "markdown": _markdown,
    }
    return environment


def _section(
    dataset: str, rows: list[Row], leaderboard: Leaderboard, styles: Mapping[str, int]
) -> dict[str, Any]:
    """Return what the pages say of one dataset, by the names that the templates have for it."""
    labels = row_labels(rows)
    entries = [entry for entry in leaderboard.entries if entry.shown_dataset == dataset]
    measured_on = published_name(entries[0].dataset)  # a variant is shown other images' figures
    published = [each for each in leaderboard.references if each.dataset == measured_on]
    drawn = {path.split("/")[1] for path in figure_names(rows) if path.startswith("attack/")}
    section = {
        "dataset": dataset,
        "own_name": entries[0].dataset,
        "rows": rows,
        "entries": entries,
        "labels": labels,
        "titles": row_titles(rows),
        "models": distinct(f"{row.model}, {row.params:,} parameters" for row in rows),
        "test_sizes": distinct(f"{row.n_test:,}" for row in rows),
        "splits": distinct(entry.split_hash[:12] for entry in entries),
        "passes": _passes(rows, labels),
        # What naming the commonest class of the test images always would score.
        "yardsticks": distinct(
            f"{row.commonest} always: {format_percent(row.commonest_share)} %"
            for row in rows
            if row.commonest_share is not None
        ),
        "seeds": sorted({entry.seed for entry in entries}),
        "zoom": fit_axis(end for row in rows for end in whisker(row)),
        "bands": table_bands(rows),
        "lower": lower_is_better(rows),
        "comparisons": [each for each in leaderboard.comparisons if each.dataset == dataset],
        "published": published,
        "references": _ranked(each for each in published if not each.of_corruptions),
        "corruption_references": _ranked(each for each in published if each.of_corruptions),
        "measured_on": None if measured_on == entries[0].dataset else measured_on,
        "legend": [(arm, styles[arm]) for arm in distinct(row.arm for row in rows)],
        "few_label_plots": few_label_plots(rows, styles),
        "corruptions": [
            part
            for origin in ("official", "generated")
            if (part := corruption_part(origin, rows, labels, styles))
        ],
        "attack_plots": attack_plots(rows, styles),
        "attacks": [ATTACKS[name] for name in ATTACKS if name in drawn],
        "details": [
            (label, row.best, leaderboard.evidence[row.key])
            for label, row in zip(labels, rows, strict=True)
            if row.key in leaderboard.evidence
        ],
    }
    # The address and the heading of each part after the table, by what it needs.
    headings = (
        ("comparisons", "comparisons", "Paired comparisons"),
        ("few_label_plots", "labels", "Few labels"),
        ("corruptions", "corruptions", "Corruptions"),
        ("attack_plots", "attacks", "Attacks"),
        ("details", "calibration", "Calibration"),
        ("details", "details", "Classes and attention"),
        ("references", "published", "Published figures"),
    )
    parts = [(slug, heading) for content, slug, heading in headings if section[content]]
    return section | {"parts": parts}


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


def _passes(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """Say how often the rows saw their images, once where they agree."""
    texts = [_format_passes(row) for row in rows]
    if len(set(texts)) > 1:
        return [f", {label}: {text}" for label, text in zip(labels, texts, strict=True)]
    return [f"{', each row' if len(rows) > 1 else ''}: {texts[0]}"]


def _format_passes(row: Row) -> str:
    passes = f"{row.mean('samples_seen') / row.num_labels:,.1f}".removesuffix(".0")
    return f"{passes} passes over {row.num_labels:,} labelled images"


def _confused(evidence: Evidence) -> list[tuple[str, str, int, float]]:
    """Return the most confused pairs: true and predicted class, count, share of the true class."""
    names = evidence.class_names
    pairs = [
        (names[true], names[predicted], count, count / sum(counts))
        for true, counts in enumerate(evidence.confusion)
        for predicted, count in enumerate(counts)
        if true != predicted and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:NUM_PAIRS]


def _inline(png: bytes) -> str:
    """Return an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _typeset(text: str) -> str:
    """The sentences are ASCII for any terminal; a page can show the sign itself."""
    return text.replace(" +- ", " \u00b1 ")


def _unbroken(text: str) -> str:
    """Keep a number and its sign on one line."""
    return text.replace(" %", "\u00a0%")


def _markdown(text: object) -> str:
    """Escape what Markdown or HTML would read as markup; a line break would end a table."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(escaped.split()))
