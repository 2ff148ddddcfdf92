"""The curves of one run as a picture."""

from pathlib import Path

from smallvit.engine.log import read_metrics

PANELS = {
    "Loss (nats)": ("train/loss", "train/loss_cls", "train/loss_token"),
    "Accuracy": ("train/top1", "val/top1", "val/knn"),
    "Learning rate": ("opt/lr",),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind eyes too


def draw_curves(metrics_path: Path, picture: Path, title: str) -> None:
    """Draw loss, accuracy and learning rate over the steps of a run as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(metrics_path)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3.4), layout="constrained")
    for axis, (name, keys) in zip(axes, PANELS.items(), strict=True):
        for key, colour in zip(keys, COLOURS, strict=False):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                mark = "o" if key.startswith("val/") and len(points) < 40 else None
                axis.plot(*zip(*points, strict=True), marker=mark, ms=3, color=colour, label=key)
        axis.set(title=name, xlabel="Step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines and len(keys) > 1:
            axis.legend(frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
