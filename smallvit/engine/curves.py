"""The curves of one run as a picture."""

from pathlib import Path

from smallvit.core.whole_file import writable
from smallvit.engine.log import read_metrics

PANELS = {
    "Loss": ("train/loss", "train/loss_cls", "train/loss_token"),
    "Accuracy": ("train/top1", "val/top1", "val/knn", "val/linear"),
    "Segmentation": ("train/pixel_accuracy", "val/pixel_accuracy", "val/miou"),
    "Effective rank": ("features/rank",),
    "Entropy of targets (nats)": ("train/teacher_entropy", "train/prototype_entropy"),
    "Learning rate": ("opt/lr",),
}
# Told apart by colour-blind eyes too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MOST_MARKED = 40  # points of a curve that are marked one by one


def draw_curves(metrics_path: Path, picture: Path, title: str) -> None:
    """Draw what a run logged over its steps as PNG; a panel that nothing fills is left out."""
    # Not pyplot, whose figures are the caller's: a notebook would show them, other threads too.
    from matplotlib.figure import Figure

    rows = read_metrics(metrics_path)
    panels = {name: curves for name, keys in PANELS.items() if (curves := _curves(rows, keys))}
    width = max(len(panels), 1)
    figure = Figure(figsize=(4 * width, 3.4), layout="constrained")
    axes = figure.subplots(1, width, squeeze=False)
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=False):
        for key, points in curves.items():
            color = COLORS[PANELS[name].index(key)]  # that of its metric in every picture
            evaluated = key.startswith(("val/", "features/"))
            alone = len(points) == 1
            mark = "o" if alone or (evaluated and len(points) < MOST_MARKED) else None
            axis.plot(*zip(*points, strict=True), marker=mark, ms=3, color=color, label=key)
        axis.set(title=name, xlabel="Step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axis.legend(frameon=False)
    figure.suptitle(writable(title), x=0.01, ha="left", fontweight="bold")
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)


def _curves(
    rows: list[dict[str, float]], keys: tuple[str, ...]
) -> dict[str, list[tuple[float, float]]]:
    """Return the points of the metrics that were logged at all."""
    found = {
        key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in keys
    }
    return {key: points for key, points in found.items() if points}
