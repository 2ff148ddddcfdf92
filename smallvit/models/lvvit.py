"""LV-ViT, the ViT that token labeling was made for: ``lvvit_tiny`` to ``lvvit_large`` in timm."""

from functools import partial
from typing import Any

from smallvit.models.architecture import register_architecture
from smallvit.models.blocks import Block
from smallvit.models.patch_embed import LvvitStem, is_even
from smallvit.models.transformer import SmallTransformer, create_transformer


def create_lvvit(
    *,
    stem_width: int,
    residual_scale: float,
    mlp_ratio: float = 3.0,
    token_head: bool = True,
    **sizes: Any,
) -> SmallTransformer:
    """Build an LV-ViT.

    Args:
        stem_width: Channels of the stem.
        residual_scale: Lambda, which each branch of a block is divided by.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        token_head: Whether patch tokens have a classifier of their own.
        sizes: As ``create_transformer`` has them; a patch is even.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.

    Source:
        Jiang et al., 2021, All Tokens Matter: Token Labeling for Training Better Vision
        Transformers, https://arxiv.org/abs/2104.10858. Sizes:
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:224-268; stochastic depth: the
        commands of its README.md:72-96.
    """
    return create_transformer(
        stem=partial(LvvitStem, width=stem_width),
        suits=is_even,
        mlp_ratio=mlp_ratio,
        block=partial(Block, residual_scale=residual_scale),
        token_head=token_head,
        **sizes,
    )


VARIANTS = {
    "lvvit_tiny": {
        "embed_dim": 240,
        "depth": 12,
        "num_heads": 4,
        "stem_width": 64,
        "residual_scale": 1.0,
        "drop_path_rate": 0.1,
    },
    "lvvit_small": {
        "embed_dim": 384,
        "depth": 16,
        "num_heads": 6,
        "stem_width": 64,
        "residual_scale": 2.0,
        "drop_path_rate": 0.1,
    },
    "lvvit_medium": {
        "embed_dim": 512,
        "depth": 20,
        "num_heads": 8,
        "stem_width": 64,
        "residual_scale": 2.0,
        "drop_path_rate": 0.2,
    },
    "lvvit_large": {
        "embed_dim": 768,
        "depth": 24,
        "num_heads": 12,
        "stem_width": 128,
        "residual_scale": 3.0,
        "drop_path_rate": 0.3,
    },
}

for _name, _sizes in VARIANTS.items():
    register_architecture(
        _name,
        create_lvvit,
        f"LV-ViT, {_sizes['depth']} blocks of width {_sizes['embed_dim']}.",
        img_size=224,
        num_classes=1000,
        first_conv="patch_embed.conv1",
        **_sizes,
    )
