"""Small ViTs with a convolutional stem and mean pooling, registered with timm.

They are what wins on small data without a start of its own: overlapping patches, and a depth-wise
convolution in the MLP, give the locality that a plain ViT would have to learn from few images.
"""

from collections.abc import Sequence

from smallvit.models.architecture import Facts, register_architecture, sides
from smallvit.models.blocks import vit_blocks
from smallvit.models.patch_embed import ConvStem, choose_patch, is_power_of_two
from smallvit.models.transformer import Pool, SmallTransformer


def create_small_vit(
    *,
    img_size: int | Sequence[int] = 32,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 10,
    embed_dim: int = 192,
    depth: int = 12,
    num_heads: int = 3,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    depthwise: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: Pool = "avg",
) -> SmallTransformer:
    """Build ViT-Tiny with a convolutional stem and without a class token.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell, a power of two; ``None`` leaves 8 cells a side or more, at
            most 16 px each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        depthwise: Whether each MLP convolves its hidden channels over the grid.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        global_pool: ``avg``, ``token`` or ``sequence``.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.
    """
    patch_size = choose_patch(img_size, patch_size, is_power_of_two)
    return SmallTransformer(
        stem=ConvStem(patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=vit_blocks(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            depthwise=depthwise,
            drop_path_rate=drop_path_rate,
        ),
        num_classes=num_classes,
        global_pool=global_pool,
        drop_rate=drop_rate,
    )


register_architecture(
    "vit_tiny_convstem",
    create_small_vit,
    "ViT-Tiny with a convolutional stem and mean pooling.",
    img_size=32,
    num_classes=10,
    first_conv="patch_embed.layers.0.0",
    facts=Facts(checks_patch=True),
)
register_architecture(
    "vit_tiny_dwconv",
    create_small_vit,
    "ViT-Tiny with a convolutional stem, depth-wise convolution in the MLP and mean pooling.",
    img_size=32,
    num_classes=10,
    first_conv="patch_embed.layers.0.0",
    facts=Facts(checks_patch=True),
    depthwise=True,
)
