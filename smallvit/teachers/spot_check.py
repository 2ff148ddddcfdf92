"""A check of written score maps: some are computed again, one by one, and compared.

Shapes in this file:
    B    images
    C    classes
    h w  the teacher's grid
    H W  image in pixels
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.teachers.score_maps import ScoreMaps
from smallvit.teachers.teacher import Teacher

# Of probabilities in [0, 1]. float16 keeps three digits of a listed one; matrix products of an
# image alone are rounded otherwise than those of a batch, in bf16 to three digits or two, in fp16,
# which has eight times as many steps between two numbers, to three or four.
TOLERANCE = {"fp32": 0.005, "bf16": 0.1, "fp16": 0.02}


def spot_check(
    teacher: Teacher,
    images: Iterable[Float[Tensor, "1 3 H W"]],
    maps: ScoreMaps,
    position: Int[Tensor, " B"],
    *,
    autocast: Callable[[], torch.autocast],
) -> float:
    """Return the largest difference between maps and the teacher's answer to the same images.

    Args:
        teacher: Which is said to have written them.
        images: Normalised, one at a time.
        maps: As read from the file.
        position: Places of these images in the split.
        autocast: Precision of the forward pass.

    Returns:
        Difference of a listed probability, or how far an unlisted class lies above a listed one;
        infinite where the grids differ.
    """
    worst = 0.0
    for image, place in zip(images, position, strict=True):
        with autocast():
            full = teacher(image).cpu()
        read = maps.dense(place[None])
        if read.shape != full.shape:
            return float("inf")
        listed = maps.index[place][None].long()
        kept = full.gather(1, listed)
        difference = (read.gather(1, listed) - kept).abs().max()
        above = full.scatter(1, listed, 0.0).amax(dim=1) - kept.amin(dim=1)
        worst = max(worst, float(difference), float(above.max()))
    return worst
