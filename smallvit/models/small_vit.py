"""Small ViTs with a convolutional stem and mean pooling, registered with timm.

They are what wins on small data without a start of its own: overlapping patches, and a depth-wise
convolution in the MLP, give the locality that a plain ViT would have to learn from few images.
"""

from functools import partial
from typing import Any

from smallvit.models.architecture import register_architecture
from smallvit.models.blocks import Mlp
from smallvit.models.patch_embed import ConvStem, is_power_of_two
from smallvit.models.transformer import SmallTransformer, create_transformer

VIT_TINY: dict[str, Any] = {
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "global_pool": "avg",
}


def create_small_vit(*, depthwise: bool = False, **sizes: Any) -> SmallTransformer:
    """Build ViT-Tiny with a convolutional stem and, unless asked for, without a class token.

    Args:
        depthwise: Whether each MLP convolves its hidden channels over the grid.
        sizes: As ``create_transformer`` has them, where they differ from ``VIT_TINY``; a patch is
            a power of two.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.
    """
    return create_transformer(
        stem=ConvStem,
        suits=is_power_of_two,
        mlp=partial(Mlp, depthwise=depthwise),
        norm_eps=1e-6,
        **{**VIT_TINY, **sizes},
    )


register_architecture(
    "vit_tiny_convstem",
    create_small_vit,
    "ViT-Tiny with a convolutional stem and mean pooling.",
    first_conv="patch_embed.layers.0.0",
)
register_architecture(
    "vit_tiny_dwconv",
    create_small_vit,
    "ViT-Tiny with a convolutional stem, depth-wise convolution in the MLP and mean pooling.",
    first_conv="patch_embed.layers.0.0",
    depthwise=True,
)
