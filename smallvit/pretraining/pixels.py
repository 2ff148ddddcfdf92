"""Pixels as the target of masked images: what mae and simmim share.

Shapes in this file:
    B    images
    N    cells, row-major (N = h * w)
    P    numbers in the pixels of a cell
    H W  image in pixels
    h w  grid of cells
"""

from jaxtyping import Float
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.data.config import ViewsConfig


def one_plain_view(scale: tuple[float, float]) -> ViewsConfig:
    """Return one large view, cropped and flipped, in the image's own colours.

    Args:
        scale: Area of the crop as a fraction of the image's, in [0, 1].
    """
    return ViewsConfig(
        num_global=1,
        num_local=0,
        global_scale=scale,
        color_jitter_prob=0.0,
        grey_prob=0.0,
        blur_prob=(0.0, 0.0, 0.0),
        solarize_prob=0.0,
    )


def check_one_view(method: str, views: ViewsConfig) -> None:
    """Refuse views that the method would not look at.

    Raises:
        ConfigError: Names the setting and its only value.
    """
    for key, needed in (("num_global", 1), ("num_local", 0)):
        given = getattr(views, key)
        if given != needed:
            raise ConfigError(
                f"method.views.{key} ({given}) must be {needed}: {method} sees one view an image"
            )


def cut_cells(images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N P"]:
    """Cut images into a grid of cells that divides them; a cell by row, column, colour."""
    cells = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, 3, h, p, w, q)
