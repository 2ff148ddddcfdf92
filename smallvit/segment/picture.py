"""Images with their true and predicted classes as a picture.

Shapes in this file:
    B    images
    H W  image in pixels
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from smallvit.core.whole_file import writable
from smallvit.segment.data import IGNORED

# Okabe and Ito's, told apart by color-blind eyes; more classes share out the hues.
COLORS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
IGNORED_COLOR = (0.75, 0.75, 0.75)
MOST_NAMED = 24  # classes in the legend


def draw_segments(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    truth: Int[Tensor, "B H W"],
    predicted: Int[Tensor, "B H W"],
    *,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draw images, their masks and what was predicted, a column an image.

    Args:
        path: PNG to write.
        images: As they are packed.
        truth: Class indices; ``IGNORED`` pixels are gray.
        predicted: Class indices.
        class_names: In the order of the indices.
        title: First line.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = _class_colors(len(class_names))
    table = np.tile(IGNORED_COLOR, (IGNORED + 1, 1))
    table[: len(colors)] = colors
    rows = {
        "image": images.cpu().numpy().transpose(0, 2, 3, 1),
        "truth": table[truth.cpu().numpy()],
        "predicted": table[predicted.cpu().numpy()],
    }
    figure = Figure(figsize=(1.5 * len(images) + 0.6, 6.0), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, pixels in zip(line, pictures, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    named = [
        Patch(color=color, label=name) for color, name in zip(colors, class_names, strict=True)
    ]
    named = [*named[:MOST_NAMED], Patch(color=IGNORED_COLOR, label="ignored")]
    figure.legend(handles=named, loc="outside lower left", ncols=6, frameon=False)
    figure.suptitle(writable(title), x=0.01, ha="left", fontweight="bold")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _class_colors(num_classes: int) -> list[tuple[float, float, float]]:
    from matplotlib.colors import hsv_to_rgb, to_rgb

    if num_classes <= len(COLORS):
        return [to_rgb(color) for color in COLORS[:num_classes]]
    hues = np.arange(num_classes - 1) / (num_classes - 1)
    return [(0.0, 0.0, 0.0), *(tuple(hsv_to_rgb((h, 0.75, 0.95))) for h in hues)]
