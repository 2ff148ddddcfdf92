"""timm's ConvNeXt-Atto for small images: ``convnext_atto_small``."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from smallvit.models.architecture import Facts, register_architecture, sides

# Not 2: timm's ConvNeXt answers a patch of 2 px with a stride in its first stage, so its cells
# are as large as with 4.
PATCH_SIZES = (4, 3, 1)


def convnext_architecture(img_size: int | Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a ConvNeXt-Atto for images of a size.

    The first stage sees the image at 32 to 64 cells a side, the last one at an eighth of that. The
    norm stands before the pooling, so that the mean of the dense logits is the image's logit.

    Args:
        img_size: Side, or height and width, in pixels.
    """
    height, width = sides(img_size)
    most = max(1, min(height, width) // 32)
    common = math.gcd(height, width)
    patch_size = next(p for p in PATCH_SIZES if p <= most and common % p == 0)
    if patch_size == 1 and most >= 3 and height == width:
        near = " or ".join(str(height // 4 * 4 + more) for more in (0, 4))
        warnings.warn(
            f"neither 3 nor 4 divides images of {height} x {width} px, so the network takes each "
            f"pixel for a patch: --data.image-size {near} would cost a tenth",
            stacklevel=2,
        )
    return "convnext_atto", {"patch_size": patch_size, "head_norm_first": True}


def create_small_convnext(*, img_size: int | Sequence[int] = 32, **arguments: Any) -> nn.Module:
    """Build a ConvNeXt-Atto with a stem that fits the image.

    Args:
        img_size: Side, or height and width, in pixels; it chooses the patch and nothing else.
        arguments: Others of timm's ConvNeXt; they override the chosen ones.
    """
    name, chosen = convnext_architecture(img_size)
    return timm.create_model(name, **{**chosen, **arguments})


def _advise(size: tuple[int, int]) -> str:
    """Say which patch, or which images, leave enough of the last stage."""
    fits = [p for p in PATCH_SIZES if min(size) // p // 8 >= 2 and math.gcd(*size) % p == 0]
    if fits:
        return f"model.patch_size {' or '.join(map(str, sorted(fits)))} would leave more"
    return "--data.image-size 16 or more would leave enough"


register_architecture(
    "convnext_atto_small",
    create_small_convnext,
    "ConvNeXt-Atto whose stem keeps small images at full size.",
    classifier="head.fc",
    first_conv="stem.0",
    facts=Facts(
        settings=frozenset({"patch_size", "drop_path_rate"}),
        is_cnn=True,
        timm_model=lambda img_size, _: convnext_architecture(img_size),
        told_by=("convnext_atto", {"head_norm_first": True}),
        advice=_advise,
    ),
)
