"""The columns of a leaderboard's table, under their headings."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from smallvit.leaderboard.figures import in_order, kind_of, label_of
from smallvit.leaderboard.part import Unit
from smallvit.leaderboard.parts.cost import ROUNDS_OF
from smallvit.leaderboard.report_text import (
    UNITS,
    format_commonest,
    format_count,
    format_labels,
    format_percent,
    format_spread,
    format_std,
    format_time,
    format_value,
    spread_name,
)
from smallvit.leaderboard.rows import Figure, Row

ATTACKS_NOTE = "not adversarially trained"
COMMONEST_HEAD = "commonest class, %"  # what naming it always would score
MEAN_PER_CLASS = "accuracy/mean_per_class"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of one row.

    Attributes:
        text: What is shown; empty where the row lacks the figure.
        spread: Its standard deviation as it is shown, or nothing.
        value: What the table is sorted by; ``None`` where it is the text.
    """

    text: str
    spread: str = ""
    value: float | None = None

    def __str__(self) -> str:
        """Return all that is shown."""
        return f"{self.text} {self.spread}".strip()


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table.

    Attributes:
        head: What stands above it.
        cells: One for each row.
        is_text: Whether it holds words.
        is_score: Whether it is the top-1 by which rows are ranked.
    """

    head: str
    cells: Sequence[Cell]
    is_text: bool = False
    is_score: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """Columns under one heading.

    Attributes:
        name: The heading.
        columns: At least one.
        note: What must be read with the heading.
    """

    name: str
    columns: Sequence[Column]
    note: str = ""

    @property
    def slug(self) -> str:
        """The heading as a word for the page's script."""
        return re.sub(r"\W+", "-", self.name.lower())


def table_bands(rows: Sequence[Row]) -> list[Band]:
    """Arrange what is known of rows of one dataset: accuracy first, then what it took.

    Only figures that at least one row has get a column.
    """
    figures = _figure_bands(rows)
    accuracy = [*_accuracy_columns(rows), *figures.pop("Accuracy", [])]
    cost = figures.pop("Cost", [])
    if cost or len({row.params for row in rows}) > 1:
        cost.insert(0, _column("parameters", rows, lambda row: row.params))
    labels = [Cell(text=format_labels(row), value=row.num_labels) for row in rows]
    groups = {
        "Accuracy": accuracy,
        **figures,
        "Seeds and images": [
            _column("seeds", rows, lambda row: row.num_seeds),
            Column(head="labelled", cells=labels),
            _column("supervised", rows, lambda row: row.mean("samples_seen")),
            _column("pretrain", rows, lambda row: row.mean("pretrain_samples")),
            _column("teacher", rows, lambda row: row.mean("teacher_samples")),
        ],
        "Training": [
            _column("stage 2", rows, lambda row: row.mean("wall_s"), format_time),
            _column("in total", rows, lambda row: row.mean("total_wall_s"), format_time),
            _column("images/s", rows, lambda row: row.mean("images_per_s")),
        ],
        "Cost": cost,
    }
    if len({row.extra_data for row in rows}) > 1:
        cells = [Cell(text=row.extra_data) for row in rows]
        groups["Data"] = [Column(head="extra data", cells=cells, is_text=True)]
    return [
        Band(name=name, columns=columns, note=ATTACKS_NOTE if name == "Attacks" else "")
        for name, columns in groups.items()
        if columns
    ]


def figure_names(rows: Sequence[Row]) -> list[str]:
    """Return the paths of all figures of the rows, in the order of tables."""
    return in_order({name for row in rows for name in (*row.figures, *row.missing)})


def show_top5(rows: Sequence[Row]) -> bool:
    """With five classes or fewer, top-5 is 1 for every model and says nothing."""
    return any(row.mean("top5") < 1 for row in rows)


def lower_is_better(rows: Sequence[Row]) -> list[str]:
    """Name the columns in which a small figure is the good one."""
    names = [name for name in figure_names(rows) if kind_of(name).column]
    return [label_of(name) for name in names if kind_of(name).better == "lower"]


def _accuracy_columns(rows: Sequence[Row]) -> list[Column]:
    spread = [Cell(text=format_spread(row), value=_width(row)) for row in rows]
    columns = [
        replace(
            _column("top-1, %", rows, lambda row: row.top1_mean, format_percent), is_score=True
        ),
        Column(head=spread_name(rows), cells=spread),
    ]
    if any(row.commonest_share is not None for row in rows):
        cells = [Cell(text=format_commonest(row), value=row.commonest_share) for row in rows]
        columns.append(Column(head=COMMONEST_HEAD, cells=cells))
    if show_top5(rows):
        top5 = [_cell(row.figure("top5"), "fraction") for row in rows]
        columns.append(Column(head="top-5, %", cells=top5))
    return columns


def _figure_bands(rows: Sequence[Row]) -> dict[str, list[Column]]:
    bands: dict[str, list[Column]] = {}
    uneven = any(row.uneven or row.commonest_share is None for row in rows)
    for name in figure_names(rows):
        kind = kind_of(name)
        if kind.column and (uneven or name != MEAN_PER_CLASS):
            unit, _ = UNITS[kind.unit]
            head = f"{label_of(name)}, {unit}" if unit else label_of(name)
            cells = [_figure_cell(row, name) for row in rows]
            bands.setdefault(kind.group, []).append(Column(head=head, cells=cells))
    return bands


def _figure_cell(row: Row, name: str) -> Cell:
    if name not in row.figures:
        reason = row.missing.get(name, "")
        return Cell(text="-" if reason else "", spread=reason)
    figure = row.figures[name]
    cell = _cell(figure, kind_of(name).unit)
    if figure.n < len(row.seeds):
        cell = replace(cell, text=f"{cell.text} (n = {figure.n})")
    if name in ROUNDS_OF:  # of seeds there is none: all runs of a network share the measurement
        rounds = row.figures.get(ROUNDS_OF[name])
        cell = replace(cell, spread="" if rounds is None else f"\u00b1 {50 * rounds.mean:.0f} %")
    return cell


def _cell(figure: Figure, unit: Unit) -> Cell:
    text = format_value(figure.mean, unit)
    return Cell(text=text, spread=format_std(figure, unit), value=figure.mean)


def _column(
    head: str,
    rows: Sequence[Row],
    read: Callable[[Row], float],
    write: Callable[[float], str] = format_count,
) -> Column:
    return Column(head=head, cells=[Cell(text=write(x), value=x) for x in map(read, rows)])


def _width(row: Row) -> float | None:
    return row.top1_std if row.interval is None else row.interval[1] - row.interval[0]
