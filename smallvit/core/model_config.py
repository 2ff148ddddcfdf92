"""Which network.

It lies here since ``smallvit.models`` registers every network with timm when it is imported, which
takes torch. What a name stands for, and which settings it takes, ``models/registry.py`` checks.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from smallvit.core.config import Range

WeightInit = Literal["trunc_normal", "mimetic", "impulse"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and where it departs from its defaults; null keeps the architecture's own.

    Attributes:
        name: One of those that ``smallvit models`` lists, or any timm model.
        patch_size: Side of a patch in pixels. Null is the largest that divides the image, up to an
            eighth of its side, 16 px at most and 2 px at least; for Swin and CCT half of that. A
            timm model that is no ViT, DeiT, CaiT or Swin keeps its own.
        embed_dim: Width of a transformer, in its first stage.
        depth: Blocks of a transformer, or layers of a ResNet (8, 14, 20, ...).
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        window_size: Side of an attention window of a Swin, in patches.
        width: Channels of a ResNet's first stage.
        stride: Pixels a cell of a ResNet's feature map: 1, 2 or 4; also 8 with four stages.
        weight_init: ``trunc_normal`` is the architecture's own; ``mimetic`` and ``impulse`` start
            from attention that looks near.
    """

    name: str = "vit_tiny"
    patch_size: Annotated[int | None, Range(ge=1, le=1024)] = None
    embed_dim: Annotated[int | None, Range(ge=8, le=8192)] = None
    depth: Annotated[int | None, Range(ge=1, le=2000)] = None
    num_heads: Annotated[int | None, Range(ge=1, le=1024)] = None
    mlp_ratio: Annotated[float | None, Range(gt=0, le=64)] = None
    drop_path_rate: Annotated[float | None, Range(ge=0, lt=1)] = None
    window_size: Annotated[int | None, Range(ge=2, le=1024)] = None
    width: Annotated[int | None, Range(ge=4, le=4096)] = None
    stride: Annotated[int | None, Range(ge=1, le=8)] = None
    weight_init: WeightInit = "trunc_normal"

    def given(self) -> dict[str, Any]:
        """Return the settings of the architecture that are not null."""
        keys = sorted(f.name for f in fields(self) if f.name not in ("name", "weight_init"))
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
