"""How the figures of a leaderboard are written, in every file and on the terminal."""

from collections.abc import Callable, Sequence

from smallvit.core.console import format_duration
from smallvit.leaderboard.part import Unit
from smallvit.leaderboard.rows import Figure, Row, format_part, name_labels, told_apart


def format_percent(value: float) -> str:
    """Write a number in [0, 1] as a percentage with two decimals, without the sign."""
    return f"{100 * value:.2f}"


def format_time(time_s: float) -> str:
    """Write a time that was measured: ``12.3 s``, ``4 min 05 s``, ``1 h 05 min``."""
    return format_duration(time_s, decimals=1)


def format_count(count: float) -> str:
    """Write a number of things in full."""
    return f"{count:,.0f}"


def short_count(count: float) -> str:
    """Write a number of things with at most three digits before the point."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if count >= 0.9999995 * size:
            return f"{count / size:,.2f} {letter}"
    return format_count(count)


def format_spread(row: Row) -> str:
    """Write the standard deviation over seeds, or the 95 % interval of a single seed."""
    if row.interval is not None:
        return " to ".join(map(format_percent, row.interval))
    return "" if row.top1_std is None else f"\u00b1 {format_percent(row.top1_std)}"


def spread_name(rows: Sequence[Row]) -> str:
    """Say what ``format_spread`` writes of these rows."""
    kinds = {row.top1_std is not None for row in rows}
    return "std or interval" if len(kinds) == 2 else "std" if True in kinds else "95 % interval"


def format_commonest(row: Row) -> str:
    """Write the accuracy of naming the commonest class always, or nothing if it is not known."""
    return "" if row.commonest_share is None else format_percent(row.commonest_share)


def format_labels(row: Row) -> str:
    """Write the number of labelled images, and the part of all that they are if not all."""
    part = f" ({format_part(row.label_fraction)})" if row.label_fraction < 1 else ""
    return f"{row.num_labels:,}{part}"


def format_commit(commit: str) -> str:
    """Shorten each commit to seven characters."""
    return ", ".join(part[:7] for part in commit.split(", "))


# What a column's head says of a unit, and how its values are written: a time says its own unit, a
# ratio has none.
UNITS: dict[Unit, tuple[str, Callable[[float], str]]] = {
    "fraction": ("%", format_percent),
    "nats": ("nats", "{:.3f}".format),
    "ratio": ("", "{:.3f}".format),
    "count": ("", short_count),
    "images/s": ("", format_count),
    "ms": ("ms", "{:,.2f}".format),
    "MiB": ("MiB", format_count),
}


def format_value(value: float, unit: Unit) -> str:
    """Write one value of a figure, without its unit."""
    return UNITS[unit][1](value)


def format_std(figure: Figure, unit: Unit) -> str:
    """Write the standard deviation of a figure, or nothing if it has none."""
    return "" if figure.std is None else f"\u00b1 {format_value(figure.std, unit)}"


def format_p(p_value: float) -> str:
    """Write a p-value; below a thousandth its size says nothing more."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_difference(difference: float) -> str:
    """Write a difference of two accuracies in points, always with a sign."""
    return f"{100 * difference:+.2f}"


def group_name(row: Row) -> str:
    """Name what the rows of one comparison share."""
    part = f", {format_part(row.label_fraction)} of labels" if row.label_fraction < 1 else ""
    return f"{row.dataset}, {row.model}{part}"


def row_labels(rows: Sequence[Row]) -> list[str]:
    """Name each row of a dataset by its arm and by what else tells it from the others."""
    apart = told_apart(rows, format_part)
    return [", ".join((row.arm, *words)) for row, words in zip(rows, apart, strict=True)]


def row_titles(rows: Sequence[Row]) -> list[str]:
    """Say of each row what else than its arm tells it from the others, or nothing."""
    return [", ".join(words) for words in told_apart(rows, name_labels)]
