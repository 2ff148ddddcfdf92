"""Where the bars, lines and cells of a leaderboard's page lie.

The page draws them as inline SVG, so that they follow its light or dark colours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from smallvit.leaderboard.board import Bin
from smallvit.leaderboard.report_text import format_percent
from smallvit.leaderboard.rows import Row

# Candidates for the distance between ticks; a fitted axis has about MAX_TICKS of them.
TICK_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
MAX_TICKS = 7
# Lines of one plot are told apart by colour and by mark; a ninth takes those of the first.
NUM_STYLES = 8
Dash = Literal["solid", "dashed", "dotted"]
Scale = Literal["linear", "log", "root"]
# Ticks whose numbers would touch are left without one; in the units of a plot.
MIN_TICK_GAP = 20.0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of accuracy.

    Attributes:
        low: Accuracy at the start, in [0, 1].
        high: Accuracy at the end, in [0, 1].
        step: Distance between ticks.
    """

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Return where ``value`` lies, in percent of the length."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    @property
    def ticks(self) -> list[float]:
        """The accuracies that are labelled."""
        count = round((self.high - self.low) / self.step)
        return [self.low + index * self.step for index in range(count + 1)]


FULL_AXIS = Axis(low=0.0, high=1.0, step=0.25)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a line.

    Attributes:
        x: Its abscissa.
        mean: Its accuracy, in [0, 1].
        std: Standard deviation over seeds; 0 where there is none.
        at: What its abscissa is called.
    """

    x: float
    mean: float
    std: float
    at: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot.

    Attributes:
        name: What it is called in the legend.
        style: Its colour and mark, below ``NUM_STYLES``.
        points: From left to right.
        dash: How it is broken, for a second kind of line.
    """

    name: str
    style: int
    points: Sequence[Point]
    dash: Dash = "solid"


@dataclass(frozen=True, kw_only=True)
class LinePlot:
    """Lines of accuracy over something.

    Attributes:
        title: What is compared in it; empty where the section says it.
        x_name: What the abscissa is.
        lines: At least one, with at least one point.
        axis: Of the accuracy.
        scale: How the abscissa is spread.
    """

    title: str
    x_name: str
    lines: Sequence[Line]
    axis: Axis
    scale: Scale = "linear"

    width = 320
    height = 220
    left, right, top, bottom = 40, 12, 10, 40

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Each abscissa with its name, or with none where it would touch the one before."""
        named = {point.x: point.at for line in self.lines for point in line.points}
        ticks, last = [], -math.inf
        for value in sorted(named):
            x = self.across(value)
            is_far = x - last >= MIN_TICK_GAP
            ticks.append((x, named[value] if is_far else ""))
            last = x if is_far else last
        return ticks

    def across(self, value: float) -> float:
        """Return how far from the left an abscissa is drawn."""
        values = [self._spread(point.x) for line in self.lines for point in line.points]
        low, high = min(values), max(values)
        share = (self._spread(value) - low) / (high - low) if high > low else 0.5
        return round(self.left + 8 + share * (self.width - self.left - self.right - 16), 2)

    def _spread(self, value: float) -> float:
        match self.scale:
            case "linear":
                return value
            case "log":
                return math.log(value)
            case "root":
                return math.sqrt(value)

    def down(self, value: float) -> float:
        """Return how far from the top an accuracy is drawn."""
        share = self.axis.place(value) / 100
        return round(self.top + (1 - share) * (self.height - self.top - self.bottom), 2)


def reliability_dots(bins: Sequence[Bin]) -> list[tuple[float, float, str]]:
    """Return the centre of each bin that has images, in percent, and what it shows in words.

    The accuracy is counted from the top, as SVG does.
    """
    return [
        (
            round(100 * each.confidence, 2),
            round(100 * (1 - each.accuracy), 2),
            f"{each.count:,} images: confidence {format_percent(each.confidence)} %, "
            f"accuracy {format_percent(each.accuracy)} %",
        )
        for each in bins
        if each.count
    ]


def whisker(row: Row) -> tuple[float, float]:
    """Return the ends of the error bar: mean +- std, or the interval of a single seed."""
    if row.interval is not None:
        return row.interval
    std = row.top1_std or 0.0
    return max(row.top1_mean - std, 0.0), min(row.top1_mean + std, 1.0)


def fit_axis(values: Iterable[float]) -> Axis:
    """Return the shortest axis between ticks that holds ``values``, each in [0, 1]."""
    ends = [min(max(value, 0.0), 1.0) for value in values]
    spread = max(ends) - min(ends)
    step = next(step for step in TICK_STEPS if spread <= (MAX_TICKS - 2) * step)
    # The rounding keeps an end that lies on a tick from reaching for the next one.
    low = math.floor(round(min(ends) / step, 6))
    high = max(math.ceil(round(max(ends) / step, 6)), low + 1)
    if high * step > 1 + 1e-9:
        low, high = low - 1, high - 1
    return Axis(low=low * step, high=high * step, step=step)


def create_plots(
    lines: Iterable[tuple[str, Line]], x_name: str, *, scale: Scale = "linear"
) -> list[LinePlot]:
    """Draw panels on one axis, which holds all their points and error bars.

    Args:
        lines: Each with the title of its panel; those without points are left out.
        x_name: What the abscissa is.
        scale: How the abscissa is spread.
    """
    panels: dict[str, list[Line]] = {}
    for title, line in lines:
        if line.points:
            panels.setdefault(title, []).append(line)
    if not panels:
        return []
    points = [point for lines in panels.values() for line in lines for point in line.points]
    axis = fit_axis(point.mean + sign * point.std for point in points for sign in (-1, 1))
    return [
        LinePlot(title=title, x_name=x_name, lines=lines, axis=axis, scale=scale)
        for title, lines in panels.items()
    ]


def format_tick(value: float) -> str:
    """Write an accuracy in percent with no more digits than it needs."""
    return f"{round(100 * value, 4):g}"
