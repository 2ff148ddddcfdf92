"""The files of a leaderboard, JSON, Markdown, CSV and HTML, and its table on the terminal."""

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from smallvit.bench.leaderboard import Entry, Row, verdict, warnings_of

FORMAT_VERSION = 1
TERMINAL_WIDTH = 100
# Candidates for the distance between ticks; the zoomed axis has about MAX_TICKS of them.
TICK_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
MAX_TICKS = 7

MARKDOWN_COLUMNS = (
    *("dataset", "model", "arm", "top-1 %", "std or 95 % interval", "top-5 %", "n test", "seeds"),
    *("labels", "samples seen", "pretrain samples", "teacher samples", "stage 2", "in total"),
    *("images/s", "parameters", "extra data", "commit"),
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A horizontal axis of accuracy.

    Attributes:
        low: Accuracy at the left end, in [0, 1].
        high: Accuracy at the right end, in [0, 1].
        step: Distance between ticks.
    """

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Return where ``value`` lies, in percent of the width."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    @property
    def ticks(self) -> list[float]:
        """The accuracies that are labelled."""
        count = round((self.high - self.low) / self.step)
        return [self.low + index * self.step for index in range(count + 1)]


FULL_AXIS = Axis(low=0.0, high=1.0, step=0.25)


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page says of one dataset.

    Attributes:
        dataset: Name of the dataset.
        rows: Its rows.
        entries: Its runs.
        labels: What to call each row: its arm, and what else tells it apart.
        zoom: Axis of the magnified figure.
        show_top5: Whether top-5 says anything.
        show_params: Whether the rows differ in their number of parameters.
        show_extra_data: Whether the rows differ in the extra data that they used.
    """

    dataset: str
    rows: list[Row]
    entries: list[Entry]
    labels: list[str]
    zoom: Axis
    show_top5: bool
    show_params: bool
    show_extra_data: bool

    @property
    def models(self) -> list[str]:
        """Each model with its number of parameters."""
        return _distinct(f"{row.model}, {row.params:,} parameters" for row in self.rows)

    @property
    def test_sizes(self) -> list[str]:
        """The numbers of test images; a single one unless the splits differ."""
        return _distinct(f"{row.n_test:,}" for row in self.rows)

    @property
    def seeds(self) -> list[int]:
        """The different seeds of the runs."""
        return sorted({entry.seed for entry in self.entries})

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """The head of each column of the table, and whether it opens a band of columns."""
        return [
            ("arm", False),
            ("top-1", True),
            (_spread_name(self.rows), False),
            *([("top-5", False)] if self.show_top5 else []),
            ("seeds", True),
            ("labelled", False),
            ("supervised", False),
            ("pretrain", False),
            ("teacher", False),
            ("stage 2", True),
            ("in total", False),
            ("images/s", False),
            *([("parameters", True)] if self.show_params else []),
            *([("extra data", not self.show_params)] if self.show_extra_data else []),
        ]


def write_leaderboard(
    rows: Sequence[Row],
    entries: Sequence[Entry],
    folder: Path,
    *,
    title: str,
    notes: list[str],
) -> dict[str, Path]:
    """Write leaderboard.json, .md, .csv and .html, each whole or not at all.

    Args:
        rows: What ``build_rows`` made of ``entries``.
        entries: The scored runs.
        folder: Where the files go; made if missing.
        title: Heading of the page.
        notes: Remarks for the reader, such as cells of a suite that failed.

    Returns:
        The files by their kind: ``json``, ``md``, ``csv`` and ``html``.
    """
    texts = {
        "json": render_json(rows, entries, title=title, notes=notes),
        "md": render_markdown(rows, entries, title=title, notes=notes),
        "csv": render_csv(rows),
        "html": render_html(rows, entries, title=title, notes=notes),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return {kind: _replace(folder / f"leaderboard.{kind}", text) for kind, text in texts.items()}


def render_json(
    rows: Sequence[Row], entries: Sequence[Entry], *, title: str, notes: list[str]
) -> str:
    """Return every figure as JSON."""
    document = {
        "version": FORMAT_VERSION,
        "title": title,
        "verdict": verdict(rows),
        "warnings": warnings_of(entries),
        "notes": notes,
        "rows": [dataclasses.asdict(row) for row in rows],
        "entries": [dataclasses.asdict(entry) for entry in entries],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def render_csv(rows: Sequence[Row]) -> str:
    """Return one line a row with every figure; several seeds are separated by spaces."""
    file = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(dataclasses.asdict(row) | {"seeds": " ".join(map(str, row.seeds))})
    return file.getvalue()


def render_markdown(
    rows: Sequence[Row], entries: Sequence[Entry], *, title: str, notes: list[str]
) -> str:
    """Return a page with one table, as GitHub shows it."""
    lines = [f"# {_markdown(title)}", ""]
    lines += [f"- {_markdown(sentence)}" for sentence in verdict(rows)]
    lines += [
        "",
        _markdown_row(MARKDOWN_COLUMNS),
        _markdown_row(["---"] * 3 + ["---:"] * 13 + ["---"] * 2),
    ]
    for row in rows:
        cells = [
            *(row.dataset, row.model, row.arm, format_percent(row.top1_mean), format_spread(row)),
            *(format_percent(row.top5_mean), f"{row.n_test:,}", str(row.num_seeds)),
            *(format_labels(row), f"{row.samples_seen:,.0f}", f"{row.pretrain_samples:,.0f}"),
            *(f"{row.teacher_samples:,.0f}", format_time(row.wall_s)),
            *(format_time(row.total_wall_s), f"{row.images_per_s:,.0f}", f"{row.params:,}"),
            *(row.extra_data, format_commit(row.commit)),
        ]
        shown = [_markdown(cell) for cell in cells]
        lines.append(
            _markdown_row([f"**{cell}**" if row.best else cell for cell in shown[:4]] + shown[4:])
        )
    lines += ["", "The highest top-1 of each dataset is bold."]
    for heading, items in (("Warnings", warnings_of(entries)), ("Notes", notes)):
        if items:
            lines += ["", f"## {heading}", "", *(f"- {_markdown(item)}" for item in items)]
    lines += ["", "## Runs", ""]
    lines += [
        f"- {_markdown(f'{entry.dataset}, {entry.arm}, seed {entry.seed}: {entry.run}')}"
        for entry in entries
    ]
    return "\n".join(lines) + "\n"


def render_html(
    rows: Sequence[Row], entries: Sequence[Entry], *, title: str, notes: list[str]
) -> str:
    """Return a page that needs no other file and no network."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": format_percent,
        "time": format_time,
        "count": _format_count,
        "spread": format_spread,
        "whisker": whisker,
        "labels": format_labels,
        "commit": format_commit,
        "tick": _format_tick,
        "typeset": _typeset,
    }
    source = resources.files("smallvit.bench").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(source).render(
        title=title,
        verdict=verdict(rows),
        warnings=warnings_of(entries),
        notes=notes,
        sections=_sections(rows, entries),
        full_axis=FULL_AXIS,
        measured=_measured(rows, entries),
        entries=entries,
    )


def render_table(rows: Sequence[Row]) -> Table:
    """Return the leaderboard for a terminal of 100 columns, the best row of a dataset bold."""
    groups = [list(group) for _, group in groupby(rows, key=_group_name)]
    show_top5 = _show_top5(rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(_group_name(rows[0])) if len(groups) == 1 else None,
        title_justify="left",
    )
    table.add_column("arm", overflow="fold", min_width=12, max_width=14)
    for name in (
        "top-1\n%",
        "\n".join(_spread_name(rows).rsplit(" ", 1)),
        *(["top-5\n%"] if show_top5 else []),
        "n\ntest",
        "seeds",
        "labels",
        "samples\nseen",
        "+ pretrain,\nteacher",
        "time\nstage 2",
        "time\nin total",
    ):
        table.add_column(name, justify="right", vertical="bottom")
    for group in groups:
        if len(groups) > 1:
            table.add_section()
            table.add_row(Text(_group_name(group[0]).replace(", ", "\n"), style="italic"))
        for row in group:
            table.add_row(
                Text(row.arm),
                f"{100 * row.top1_mean:.2f}",
                _terminal_spread(row),
                *([f"{100 * row.top5_mean:.2f}"] if show_top5 else []),
                f"{row.n_test:,}",
                str(row.num_seeds),
                f"{row.num_labels:,}",
                _short_count(row.samples_seen),
                _short_count(row.pretrain_samples + row.teacher_samples),
                format_time(row.wall_s),
                format_time(row.total_wall_s),
                style="bold" if row.best else None,
            )
    wide = Console(width=10 * TERMINAL_WIDTH)
    if Measurement.get(wide, wide.options, table).maximum > TERMINAL_WIDTH:
        table.padding = 0
    return table


def format_percent(value: float) -> str:
    """Write a number in [0, 1] as a percentage with two decimals, without the sign."""
    return f"{100 * value:.2f}"


def format_time(time_s: float) -> str:
    """Write seconds as a person reads them: ``12.3 s``, ``4 min 05 s``, ``1 h 05 min``."""
    if time_s < 59.95:
        return f"{time_s:.1f} s"
    minutes, seconds = divmod(round(time_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(time_s / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def format_spread(row: Row) -> str:
    """Write the standard deviation over seeds, or the 95 % interval of a single seed."""
    if row.top1_low is not None and row.top1_high is not None:
        return f"{format_percent(row.top1_low)} to {format_percent(row.top1_high)}"
    return "" if row.top1_std is None else f"\u00b1 {format_percent(row.top1_std)}"


def format_labels(row: Row) -> str:
    """Write the number of labelled images, and the part of all that they are if not all."""
    part = f" ({100 * row.label_fraction:g} %)" if row.label_fraction < 1 else ""
    return f"{row.num_labels:,}{part}"


def format_commit(commit: str) -> str:
    """Shorten each commit to seven characters."""
    return ", ".join(part[:7] for part in commit.split(", "))


def _sections(rows: Sequence[Row], entries: Sequence[Entry]) -> list[Section]:
    sections = []
    for dataset, group in groupby(rows, key=lambda row: row.dataset):
        shown = list(group)
        sections.append(
            Section(
                dataset=dataset,
                rows=shown,
                entries=[entry for entry in entries if entry.dataset == dataset],
                labels=_labels(shown),
                zoom=_zoom_axis(shown),
                show_top5=_show_top5(shown),
                show_params=len({row.params for row in shown}) > 1,
                show_extra_data=len({row.extra_data for row in shown}) > 1,
            )
        )
    return sections


def _labels(rows: Sequence[Row]) -> list[str]:
    several_models = len({row.model for row in rows}) > 1
    several_fractions = len({row.label_fraction for row in rows}) > 1
    labels = []
    for row in rows:
        model = f", {row.model}" if several_models else ""
        fraction = f", {100 * row.label_fraction:g} %" if several_fractions else ""
        labels.append(f"{row.arm}{model}{fraction}")
    return labels


def whisker(row: Row) -> tuple[float, float]:
    """Return the ends of the error bar: mean +- std, or the interval of a single seed."""
    if row.top1_low is not None and row.top1_high is not None:
        return row.top1_low, row.top1_high
    std = row.top1_std or 0.0
    return max(row.top1_mean - std, 0.0), min(row.top1_mean + std, 1.0)


def _zoom_axis(rows: Sequence[Row]) -> Axis:
    ends = [end for row in rows for end in whisker(row)]
    spread = max(ends) - min(ends)
    step = next(step for step in TICK_STEPS if spread <= (MAX_TICKS - 2) * step)
    # The rounding keeps an end that lies on a tick from reaching for the next one.
    low = math.floor(round(min(ends) / step, 6))
    high = max(math.ceil(round(max(ends) / step, 6)), low + 1)
    if high * step > 1 + 1e-9:
        low, high = low - 1, high - 1
    return Axis(low=low * step, high=high * step, step=step)


def _show_top5(rows: Sequence[Row]) -> bool:
    """With five classes or fewer, top-5 is 1 for every model and says nothing."""
    return any(row.top5_mean < 1 for row in rows)


def _measured(rows: Sequence[Row], entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """Return the facts of the section on how it was measured: a name and its values."""
    test, passes = [], []
    for dataset, group in groupby(rows, key=lambda row: row.dataset):
        shown = list(group)
        hashes = _distinct(e.split_hash[:12] for e in entries if e.dataset == dataset)
        counts = _distinct(f"{row.n_test:,}" for row in shown)
        test.append(f"{dataset}: {' or '.join(counts)} images, split {', '.join(hashes)}")
        texts = [_format_passes(row) for row in shown]
        if len(set(texts)) == 1:
            every = ", each row" if len(shown) > 1 else ""
            passes.append(f"{dataset}{every}: {texts[0]}")
        else:
            labels = _labels(shown)
            passes += [f"{dataset}, {labels[i]}: {text}" for i, text in enumerate(texts)]
    return [
        ("Test images", test),
        ("Training, stage 2", passes),
        ("Seeds", [", ".join(str(seed) for seed in sorted({e.seed for e in entries}))]),
        ("Extra data", _distinct(entry.extra_data for entry in entries)),
        ("Machine", _distinct(f"{e.machine}; {e.device}, {e.precision}" for e in entries)),
        (
            "Commit",
            _distinct(e.commit + (" + uncommitted changes" if e.dirty else "") for e in entries),
        ),
    ]


def _group_name(row: Row) -> str:
    fraction = f", {100 * row.label_fraction:g} % of labels" if row.label_fraction < 1 else ""
    return f"{row.dataset}, {row.model}{fraction}"


def _spread_name(rows: Sequence[Row]) -> str:
    with_std = sum(row.top1_std is not None for row in rows)
    return "std or interval" if 0 < with_std < len(rows) else "std" if with_std else "95 % interval"


def _terminal_spread(row: Row) -> str:
    if row.top1_low is not None and row.top1_high is not None:
        return f"{100 * row.top1_low:.1f}-{100 * row.top1_high:.1f}"
    return "" if row.top1_std is None else f"+- {100 * row.top1_std:.2f}"


def _short_count(count: float) -> str:
    return f"{count:,.0f}" if count < 999_999.5 else f"{count / 1e6:,.2f} M"


def _format_count(count: float) -> str:
    return f"{count:,.0f}"


def _format_passes(row: Row) -> str:
    passes = f"{row.samples_seen / row.num_labels:,.1f}".removesuffix(".0")
    return f"{passes} passes over {row.num_labels:,} labelled images"


def _format_tick(value: float) -> str:
    return f"{round(100 * value, 4):g}"


def _typeset(text: str) -> str:
    """The sentences are ASCII for any terminal; a page can show the sign itself."""
    return text.replace(" +- ", " \u00b1 ")


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as markup; a line break would end a table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(escaped.split()))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    return temporary.replace(path)
