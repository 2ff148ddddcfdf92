"""What of a leaderboard's rows is drawn as lines and heat maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from smallvit.leaderboard.report_plots import Dash, Line, LinePlot, Point, create_plots
from smallvit.leaderboard.rows import Figure, Row, distinct, format_part, name_labels

# Corruptions by kind, in the order of Hendrycks and Dietterich; what is not listed comes last.
CORRUPTION_KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
EXTRA_KIND = "extra"
ATTACKS: dict[str, tuple[str, Dash]] = {
    "pgd": ("PGD", "solid"),
    "fgsm": ("FGSM", "dashed"),
    "autoattack": ("AutoAttack", "dotted"),
}


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """One row of a heat map.

    Attributes:
        label: Of the row.
        clean: Accuracy on the uncorrupted images.
        mean: Accuracy over the 15 corruptions.
        cells: Accuracy for each column, over severities; ``None`` where it was not measured.
    """

    label: str
    clean: float
    mean: float | None
    cells: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class CorruptionPart:
    """What the page says of corrupted images of one origin.

    Attributes:
        origin: ``generated`` or ``official``.
        kinds: Headings of the columns, and how many each spans.
        columns: The corruptions.
        rows: Accuracies.
        low: The lowest of them, which is left without colour.
        high: The highest, which has the full colour.
        plots: Accuracy over severity.
    """

    origin: str
    kinds: Sequence[tuple[str, int]]
    columns: Sequence[str]
    rows: Sequence[HeatRow]
    low: float
    high: float
    plots: Sequence[LinePlot]

    def shade(self, value: float) -> float:
        """Return how strongly a cell is coloured, in [0, 1]."""
        return round((value - self.low) / (self.high - self.low), 3) if self.high > self.low else 0


def few_label_plots(rows: Sequence[Row], styles: Mapping[str, int]) -> list[LinePlot]:
    """Draw the top-1 of each arm over the part of the labels, a panel for each model.

    Args:
        rows: Of one dataset.
        styles: Colour and mark by arm.

    Returns:
        No panel where no arm was run with several parts.
    """
    points: dict[tuple[str, str], list[Point]] = {}
    for row in sorted(rows, key=lambda row: row.label_fraction):
        point = Point(
            x=row.label_fraction,
            mean=row.top1_mean,
            std=row.top1_std or 0.0,
            at=format_part(row.label_fraction),
        )
        points.setdefault((row.model, row.arm), []).append(point)
    panels: dict[str, list[Line]] = {}
    for model, arm in dict.fromkeys((row.model, row.arm) for row in rows):
        line = Line(name=arm, style=styles[arm], points=points[model, arm])
        if len(line.points) > 1:
            panels.setdefault(model, []).append(line)
    return create_plots(panels, "training labels used", scale="log")


def attack_plots(rows: Sequence[Row], styles: Mapping[str, int]) -> list[LinePlot]:
    """Draw the accuracy under attack over the size of the change, a line for each attack.

    Args:
        rows: Of one dataset.
        styles: Colour and mark by arm.
    """

    def lines(row: Row) -> list[Line]:
        drawn = []
        for attack, (name, dash) in ATTACKS.items():
            points = _attack_points(row, attack)
            if points:
                drawn.append(
                    Line(name=f"{row.arm}, {name}", style=styles[row.arm], points=points, dash=dash)
                )
        return drawn

    return create_plots(
        _panels(rows, lines), "size of the change, 1/255 (root scale)", scale="root"
    )


def _attack_points(row: Row, attack: str) -> list[Point]:
    prefix = f"attack/{attack}/"
    found = {
        float(name.removeprefix(prefix)): figure
        for name, figure in row.figures.items()
        if name.startswith(prefix)
    }
    points = [
        Point(x=size, mean=figure.mean, std=figure.std or 0.0, at=f"{size:g}")
        for size, figure in sorted(found.items())
    ]
    if points and 0 not in found:
        points.insert(0, Point(x=0, mean=row.top1_mean, std=row.top1_std or 0.0, at="0"))
    return points


def corruption_part(
    origin: str, rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, int]
) -> CorruptionPart | None:
    """Arrange the accuracies on corrupted images of one origin.

    Args:
        origin: ``generated`` or ``official``.
        rows: Of one dataset.
        labels: What to call each.
        styles: Colour and mark by arm.

    Returns:
        ``None`` where none were scored.
    """
    by_row = [_by_corruption(row, origin) for row in rows]
    found = distinct(name for cells in by_row for name in cells)
    if not found:
        return None
    listed = [name for names in CORRUPTION_KINDS.values() for name in names]
    others = [name for name in found if name not in listed]
    kinds = {
        kind: [name for name in names if name in found]
        for kind, names in (CORRUPTION_KINDS | {EXTRA_KIND: tuple(others)}).items()
    }
    columns = [name for names in kinds.values() for name in names]
    heat = [
        HeatRow(
            label=label,
            clean=_clean(row, origin).mean,
            mean=figure.mean if (figure := row.figures.get(f"corruption/{origin}")) else None,
            cells=[fmean(cells[name].values()) if name in cells else None for name in columns],
        )
        for label, row, cells in zip(labels, rows, by_row, strict=True)
        if cells
    ]
    values = [value for row in heat for value in (row.clean, *row.cells) if value is not None]

    def lines(row: Row) -> list[Line]:
        clean = _clean(row, origin)
        points = _severity_points(clean, _by_corruption(row, origin), listed)
        return [Line(name=row.arm, style=styles[row.arm], points=points)] if points else []

    return CorruptionPart(
        origin=origin,
        kinds=[(kind, len(names)) for kind, names in kinds.items() if names],
        columns=[name.replace("_", " ") for name in columns],
        rows=heat,
        low=min(values),
        high=max(values),
        plots=create_plots(_panels(rows, lines), "severity"),
    )


def _by_corruption(row: Row, origin: str) -> dict[str, dict[int, float]]:
    """Return accuracies by corruption and severity."""
    cells: dict[str, dict[int, float]] = {}
    for path, figure in row.figures.items():
        if path.startswith(f"corruption/{origin}/"):
            name, severity = path.split("/")[2:]
            cells.setdefault(name, {})[int(severity)] = figure.mean
    return cells


def _clean(row: Row, origin: str) -> Figure:
    """Return the accuracy on the images as they were before they were corrupted."""
    of_all = Figure(mean=row.top1_mean, std=row.top1_std, n=len(row.seeds))
    return row.figures.get(f"corruption/{origin}_clean", of_all)


def _severity_points(
    clean: Figure, cells: Mapping[str, Mapping[int, float]], listed: Sequence[str]
) -> list[Point]:
    counted = {name: values for name, values in cells.items() if name in listed}
    severities = sorted({severity for values in counted.values() for severity in values})
    points = [
        Point(
            x=severity,
            mean=fmean(values[severity] for values in counted.values() if severity in values),
            std=0.0,
            at=str(severity),
        )
        for severity in severities
    ]
    if points:
        points.insert(0, Point(x=0, mean=clean.mean, std=clean.std or 0.0, at="clean"))
    return points


def _panels(rows: Sequence[Row], lines: Callable[[Row], list[Line]]) -> dict[str, list[Line]]:
    """Draw arms side by side that share model and labels: theirs are fair comparisons."""
    panels: dict[str, list[Line]] = {}
    for title, row in zip(row_titles(rows), rows, strict=True):
        panels.setdefault(title, []).extend(lines(row))
    return panels


def row_titles(rows: Sequence[Row]) -> list[str]:
    """Say of each row what else than its arm tells it from the others, or nothing."""
    several_models = len({row.model for row in rows}) > 1
    several_parts = len({row.label_fraction for row in rows}) > 1
    titles = []
    for row in rows:
        part = name_labels(row.label_fraction) if several_parts else ""
        titles.append(
            ", ".join(text for text in (row.model if several_models else "", part) if text)
        )
    return titles
