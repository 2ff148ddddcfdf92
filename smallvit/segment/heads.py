"""Heads that read the class of every place from a backbone's features.

Shapes in this file:
    B    images
    C    classes
    D    channels
    H W  image in pixels
    h w  map in cells
    m n  map in cells, resized
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError, reason
from smallvit.models.tokens import AbstractBackbone
from smallvit.segment.config import HeadConfig

MOST_LEVELS = 4
LEAST_LEVELS = 3
POOLED = (1, 2, 3, 6)  # cells a side of the pooling pyramid, as published
PYRAMID = (4.0, 2.0, 1.0, 0.5)  # sides of the levels of a network of one grid, in its grids
UNFIT = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)  # timm's
FINEST_PX = 2  # pixels of a cell of the finest level


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Feature maps that a head takes from inside a network.

    Attributes:
        indices: Their places in what ``forward_intermediates`` counts.
        channels: D of each.
        grids: Grid that each is brought to.
        norm: Whether the network's last norm is applied to them.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    norm: bool


class AbstractSegmentHead(nn.Module, ABC):
    """Class logits of every place; the network is the caller's."""

    @abstractmethod
    def forward(
        self, backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B C h w"]:
        """Return logits on the head's own grid."""


class LinearHead(AbstractSegmentHead):
    """A 1 x 1 convolution on the final patch tokens.

    Args:
        embed_dim: Channels of the tokens.
        num_classes: C.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(embed_dim, num_classes, 1)

    def forward(
        self, backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B C h w"]:
        """Classify the tokens."""
        tokens = backbone(images)
        return self.classifier(tokens.patch.mT.unflatten(2, tokens.grid))


class UperNetLightHead(AbstractSegmentHead):
    """UperNet at a quarter of its width: pooling pyramid on the last level, then a top-down one.

    Each level is normalized over its channels first, since those of a transformer grow with depth.
    A network of one grid gives the pyramid by resizing, without learned upsampling.

    Args:
        levels: Which feature maps.
        num_classes: C.
        config: Width and dropout.

    Source:
        Xiao et al., 2018, Unified Perceptual Parsing for Scene Understanding,
        https://arxiv.org/abs/1807.10221, section 3. Group norms stand for its batch norms, so that
        batches may be of one image. The pyramid of a plain ViT: Li et al., 2022, Exploring Plain
        Vision Transformer Backbones for Object Detection, https://arxiv.org/abs/2203.16527,
        section 3, with transposed convolutions there.
    """

    def __init__(self, levels: Levels, *, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.levels = levels
        width = config.width
        *most, last = levels.channels
        self.lateral = nn.ModuleList(_conv(channels, width, 1) for channels in most)
        self.pool_sides = [side for side in POOLED if side <= min(levels.grids[-1])]
        self.pooled = nn.ModuleList(_conv(last, width, 1) for _ in self.pool_sides)
        self.bottleneck = _conv(last + width * len(self.pool_sides), width, 3)
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in most)
        self.fuse = _conv(width * len(levels.channels), width, 3)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(
        self, backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B C h w"]:
        """Classify the joined levels."""
        *most, last = take_levels(backbone, images, self.levels)
        *most_grids, last_grid = self.levels.grids
        last = resize(_normalize(last), last_grid)
        pools = (
            resize(conv(resize(last, (side, side))), last_grid)
            for side, conv in zip(self.pool_sides, self.pooled, strict=True)
        )
        maps = [self.bottleneck(torch.cat([last, *pools], dim=1))]
        for level, grid, conv in zip(
            reversed(most), reversed(most_grids), reversed(self.lateral), strict=True
        ):
            maps.append(resize(conv(_normalize(level)), grid) + resize(maps[-1], grid))
        finest = self.levels.grids[0]
        smoothed = [conv(x) for conv, x in zip(self.smooth, reversed(maps[1:]), strict=True)]
        joined = torch.cat([resize(x, finest) for x in (*smoothed, maps[0])], dim=1)
        return self.classifier(self.dropout(self.fuse(joined)))


def create_head(
    backbone: AbstractBackbone, *, num_classes: int, image_size: int, config: HeadConfig
) -> AbstractSegmentHead:
    """Build a head for a network and images of a side, in pixels.

    Raises:
        ConfigError: If it needs levels and the network gives none.
    """
    if config.name == "linear":
        return LinearHead(backbone.embed_dim, num_classes)
    levels = find_levels(backbone, image_size)
    return UperNetLightHead(levels, num_classes=num_classes, config=config)


def find_levels(backbone: AbstractBackbone, image_size: int) -> Levels:
    """Choose three or four levels of a network, the finest first.

    The last map of each grid where there are three grids or more, as in a Swin or a CNN; else four
    depths at equal distances, brought to a pyramid of ``PYRAMID``. No level is finer than
    ``FINEST_PX``.

    Args:
        backbone: The network; it is left as it was.
        image_size: Side of the images, in pixels.

    Raises:
        ConfigError: If timm knows no levels of it.
    """
    maps, norm = _probe(backbone, image_size)
    shapes = [tuple(level.shape[1:]) for level in maps]
    last_of = {(shape[1], shape[2]): i for i, shape in enumerate(shapes)}
    finest = image_size // FINEST_PX
    if len(last_of) >= LEAST_LEVELS:
        indices = sorted(last_of.values())[-MOST_LEVELS:]
        sides = [shapes[i][1:] for i in indices]
    else:
        depth = len(shapes)
        indices = [(depth * (i + 1) + MOST_LEVELS - 1) // MOST_LEVELS - 1 for i in range(4)]
        sides = [[max(1, round(side * by)) for side in shapes[-1][1:]] for by in PYRAMID]
    return Levels(
        indices=tuple(indices),
        channels=tuple(shapes[i][0] for i in indices),
        grids=tuple((min(height, finest), min(width, finest)) for height, width in sides),
        norm=norm,
    )


def take_levels(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"], levels: Levels
) -> list[Float[Tensor, "B _ _ _"]]:
    """Return a network's feature maps, one for each index, repeated ones too."""
    wanted = sorted(set(levels.indices))
    maps = _feature_maps(backbone, images, wanted, norm=levels.norm)
    by_index = dict(zip(wanted, maps, strict=True))
    return [by_index[index] for index in levels.indices]


def _feature_maps(
    backbone: AbstractBackbone,
    images: Float[Tensor, "B 3 H W"],
    indices: list[int] | None,
    *,
    norm: bool,
) -> list[Float[Tensor, "B _ _ _"]]:
    model: Any = backbone.model
    return model.forward_intermediates(
        images, indices=indices, norm=norm, output_fmt="NCHW", intermediates_only=True
    )


@torch.no_grad()
def _probe(
    backbone: AbstractBackbone, image_size: int
) -> tuple[list[Float[Tensor, "1 _ _ _"]], bool]:
    """Return all levels of one black image, and whether the last norm suits each of them."""
    image = next(backbone.parameters()).new_zeros(1, 3, image_size, image_size)
    training = backbone.training
    backbone.eval()
    try:
        try:
            return _feature_maps(backbone, image, None, norm=True), True
        except UNFIT:  # a dense network's last norm is for its last width alone
            return _feature_maps(backbone, image, None, norm=False), False
    except UNFIT as error:
        raise ConfigError(
            f"{backbone.model_name} gives no levels for upernet-light ({reason(error)[:120]}): use "
            "--head linear"
        ) from error
    finally:
        backbone.train(training)


def resize(x: Float[Tensor, "B D h w"], grid: tuple[int, int]) -> Float[Tensor, "B D m n"]:
    """Resize maps: bilinear where they grow, means where they shrink.

    Two matrix products: unlike torch's own kernels they have the same gradient on every run.
    """
    height, width = x.shape[2:]
    if (height, width) == grid:
        return x
    rows = _axis_weights(height, grid[0], x.device, x.dtype)
    columns = _axis_weights(width, grid[1], x.device, x.dtype)
    return rows @ x @ columns.mT


@lru_cache(maxsize=64)
def _axis_weights(
    size: int, wanted: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "m h"]:
    """Return what each cell of one axis counts for each resized one; rows sum to 1."""
    with torch.inference_mode(False), torch.no_grad():
        cells = torch.eye(size)[None]
        if wanted >= size:
            weights = F.interpolate(cells, size=wanted, mode="linear", align_corners=False)
        else:
            weights = F.adaptive_avg_pool1d(cells, wanted)
        return weights[0].mT.contiguous().to(device, dtype)


def _normalize(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


def _conv(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, width),
        nn.ReLU(),
    )
