"""What of a leaderboard's rows is drawn as lines and heat maps."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from smallvit.leaderboard.report_plots import Dash, Line, LinePlot, Point, create_plots
from smallvit.leaderboard.report_text import row_titles
from smallvit.leaderboard.rows import Figure, Row, distinct, format_part

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


def few_label_plots(rows: Sequence[Row], styles: Mapping[str, int]) -> list[LinePlot]:
    """Draw the top-1 of each arm over the share of the labels, a panel for each model.

    Args:
        rows: Of one dataset.
        styles: Color and mark by arm.

    Returns:
        No panel where no arm was run with several shares.
    """
    points: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        share = row.label_fraction
        point = _point(share, format_part(share), row.top1)
        points.setdefault((row.model, row.arm), []).insert(0, point)  # the largest share is first
    lines = [
        (model, Line(name=arm, style=styles[arm], points=of_arm))
        for (model, arm), of_arm in points.items()
        if len(of_arm) > 1
    ]
    return create_plots(lines, "training labels used", scale="log")


def attack_plots(rows: Sequence[Row], styles: Mapping[str, int]) -> list[LinePlot]:
    """Draw the accuracy under attack over the size of the change, a line for each attack.

    Args:
        rows: Of one dataset.
        styles: Color and mark by arm.
    """
    lines = []
    for title, row in zip(row_titles(rows), rows, strict=True):
        for attack, (name, dash) in ATTACKS.items():
            prefix = f"attack/{attack}/"
            found = {
                float(path.removeprefix(prefix)): figure
                for path, figure in row.figures.items()
                if path.startswith(prefix)
            }
            if found:
                found.setdefault(0.0, row.top1)
            points = [_point(size, f"{size:g}", figure) for size, figure in sorted(found.items())]
            line = Line(name=f"{row.arm}, {name}", style=styles[row.arm], points=points, dash=dash)
            lines.append((title, line))
    return create_plots(lines, "size of the change, 1/255 (root scale)", scale="root")


def corruption_part(
    origin: str, rows: Sequence[Row], labels: Sequence[str], styles: Mapping[str, int]
) -> dict[str, Any] | None:
    """Arrange the accuracies on corrupted images of one origin.

    Args:
        origin: ``generated`` or ``official``.
        rows: Of one dataset.
        labels: What to call each.
        styles: Color and mark by arm.

    Returns:
        ``None`` where none were scored, else the ``origin`` and what the template draws of it:
        ``kinds``, headings of columns and how many each spans; ``columns``, the corruptions;
        ``rows``, the label of each with its accuracy on clean images, the mean over the 15
        corruptions, and that of each column over severities, ``None`` where it was not measured;
        ``low`` and ``high``, the ends of those accuracies, without color and with the full one;
        ``plots``, accuracy over severity.
    """
    by_row = [_by_corruption(row, origin) for row in rows]
    found = distinct(name for cells in by_row for name in cells)
    if not found:
        return None
    listed = [name for names in CORRUPTION_KINDS.values() for name in names]
    others = tuple(name for name in found if name not in listed)
    kinds = {
        kind: [name for name in names if name in found]
        for kind, names in (CORRUPTION_KINDS | {EXTRA_KIND: others}).items()
    }
    columns = [name for names in kinds.values() for name in names]
    heat, lines, values = [], [], []
    for title, label, row, cells in zip(row_titles(rows), labels, rows, by_row, strict=True):
        if not cells:
            continue
        # The images as they were before they were corrupted.
        clean = row.figures.get(f"corruption/{origin}_clean", row.top1)
        means = [fmean(cells[name].values()) if name in cells else None for name in columns]
        values += [mean for mean in (clean.mean, *means) if mean is not None]
        mean = row.figures.get(f"corruption/{origin}")
        heat.append((label, [clean.mean, mean.mean if mean else None, *means]))
        points = _severity_points(clean, [cells[name] for name in cells if name in listed])
        lines.append((title, Line(name=row.arm, style=styles[row.arm], points=points)))
    return {
        "origin": origin,
        "kinds": [(kind, len(names)) for kind, names in kinds.items() if names],
        "columns": [name.replace("_", " ") for name in columns],
        "rows": heat,
        "low": min(values),
        "high": max(values),
        "plots": create_plots(lines, "severity"),
    }


def _by_corruption(row: Row, origin: str) -> dict[str, dict[int, float]]:
    """Return accuracies by corruption and severity."""
    cells: dict[str, dict[int, float]] = {}
    for path, figure in row.figures.items():
        if path.startswith(f"corruption/{origin}/"):
            name, severity = path.split("/")[2:]
            cells.setdefault(name, {})[int(severity)] = figure.mean
    return cells


def _severity_points(clean: Figure, cells: Sequence[Mapping[int, float]]) -> list[Point]:
    """Average corruptions at each severity; at the left, the images as they are."""
    severities = sorted({severity for values in cells for severity in values})
    points = [_point(0, "clean", clean)] if severities else []
    for severity in severities:
        mean = fmean(values[severity] for values in cells if severity in values)
        points.append(Point(x=severity, mean=mean, std=0.0, at=str(severity)))
    return points


def _point(x: float, at: str, figure: Figure) -> Point:
    return Point(x=x, mean=figure.mean, std=figure.std or 0.0, at=at)
