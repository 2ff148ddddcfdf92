"""Compact convolutional transformers, registered with timm: ``cct_7_3x1``."""

from functools import partial
from typing import Any

from timm.layers.attention import Attention

from smallvit.models.architecture import register_architecture
from smallvit.models.blocks import Block
from smallvit.models.patch_embed import ConvTokenizer, is_power_of_two
from smallvit.models.transformer import SmallTransformer, create_transformer


def create_cct(*, attn_drop_rate: float = 0.1, **sizes: Any) -> SmallTransformer:
    """Build a compact convolutional transformer.

    Args:
        attn_drop_rate: Dropout of the attention weights.
        sizes: As ``create_transformer`` has them; a patch is a power of two, one layer of the
            tokenizer for each halving, and ``None`` leaves 16 cells a side or more.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.

    Source:
        Hassani et al., 2021, Escaping the Big Data Paradigm with Compact Transformers,
        https://arxiv.org/abs/2104.05704. SHI-Labs/Compact-Transformers@0365097, src/cct.py:
        ``cct_7_3x1_32`` keeps the class's dropout 0, attention dropout 0.1 and stochastic depth
        0.1. Their nets for 224 px have two 7x7 convolutions of stride 2; here the tokenizer gains
        3x3 layers of stride 1.
    """
    return create_transformer(
        stem=ConvTokenizer,
        suits=is_power_of_two,
        tokens=16,
        attn=partial(Attention, attn_drop=attn_drop_rate),
        block=partial(Block, norms_stream=True),
        pos_std=0.2,
        blocks_first=True,
        **sizes,
    )


register_architecture(
    "cct_7_3x1",
    create_cct,
    "CCT-7/3x1: 7 blocks of width 256, a 3x3 tokenizer and sequence pooling.",
    first_conv="patch_embed.layers.0.0",
    embed_dim=256,
    depth=7,
    num_heads=4,
    mlp_ratio=2.0,
    drop_path_rate=0.1,
    global_pool="sequence",
)
