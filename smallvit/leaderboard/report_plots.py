"""Where the bars, lines and cells of a leaderboard's page lie.

The page draws them as inline SVG, so that they follow its light or dark colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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

    @property
    def text(self) -> str:
        """The line in words, for who cannot see it."""
        values = ", ".join(f"{point.at}: {format_percent(point.mean)}" for point in self.points)
        return f"{self.name}: {values}"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A point where it is drawn, in the units of its plot.

    Attributes:
        x: Distance from the left.
        y: Distance from the top.
        low: That of the lower end of its error bar.
        high: That of the upper end.
        text: What it shows, in words.
    """

    x: float
    y: float
    low: float
    high: float
    text: str


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
            place = self._across(value)
            is_far = place - last >= MIN_TICK_GAP
            ticks.append((place, named[value] if is_far else ""))
            last = place if is_far else last
        return ticks

    @property
    def y_ticks(self) -> list[tuple[float, float]]:
        """Each labelled accuracy with its distance from the top."""
        return [(self._down(tick), tick) for tick in self.axis.ticks]

    def place(self, line: Line) -> list[Placed]:
        """Return where the points of a line are drawn."""
        return [
            Placed(
                x=self._across(point.x),
                y=self._down(point.mean),
                low=self._down(point.mean - point.std),
                high=self._down(point.mean + point.std),
                text=f"{line.name}, {point.at}: {format_percent(point.mean)} %",
            )
            for point in line.points
        ]

    def _across(self, value: float) -> float:
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

    def _down(self, value: float) -> float:
        share = self.axis.place(value) / 100
        return round(self.top + (1 - share) * (self.height - self.top - self.bottom), 2)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram: accuracy over confidence, before and after temperature scaling.

    Attributes:
        name: Of the row.
        bins: As the network gives it.
        scaled: After temperature scaling.
    """

    name: str
    bins: Sequence[Bin]
    scaled: Sequence[Bin]

    size = 100

    def line(self, bins: Sequence[Bin]) -> str:
        """Return the corners of a line through the bins that have images, for SVG."""
        return " ".join(f"{x:g},{y:g}" for x, y, _ in self.dots(bins))

    def dots(self, bins: Sequence[Bin]) -> list[tuple[float, float, str]]:
        """Return the centre of each bin that has images, and what it shows in words."""
        return [
            (
                round(self.size * each.confidence, 2),
                round(self.size * (1 - each.accuracy), 2),
                f"{each.count:,} images: confidence {format_percent(each.confidence)} %, "
                f"accuracy {format_percent(each.accuracy)} %",
            )
            for each in bins
            if each.count
        ]

    def shares(self) -> list[float]:
        """Return the height of each bin's bar: its part of the images, the largest full."""
        most = max(each.count for each in self.bins)
        return [round(each.count / most, 4) if most else 0.0 for each in self.bins]

    @property
    def text(self) -> str:
        """The diagram in words, for who cannot see it."""
        return f"Reliability of {self.name}: " + "; ".join(
            text for _, _, text in self.dots(self.bins)
        )


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
    panels: Mapping[str, Sequence[Line]], x_name: str, *, scale: Scale = "linear"
) -> list[LinePlot]:
    """Draw panels on one axis, which holds all their points and error bars.

    Args:
        panels: Lines by the title of their panel.
        x_name: What the abscissa is.
        scale: How the abscissa is spread.
    """
    points = [point for lines in panels.values() for line in lines for point in line.points]
    if not points:
        return []
    axis = fit_axis(point.mean + sign * point.std for point in points for sign in (-1, 1))
    return [
        LinePlot(title=title, x_name=x_name, lines=lines, axis=axis, scale=scale)
        for title, lines in panels.items()
        if lines
    ]


def format_tick(value: float) -> str:
    """Write an accuracy in percent with no more digits than it needs."""
    return f"{round(100 * value, 4):g}"
