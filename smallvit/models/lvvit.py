"""LV-ViT, the ViT that token labeling was made for: ``lvvit_tiny`` to ``lvvit_large`` in timm."""

from collections.abc import Sequence

from smallvit.models.architecture import Facts, register_architecture, sides
from smallvit.models.blocks import vit_blocks
from smallvit.models.patch_embed import LvvitStem, choose_patch, is_even
from smallvit.models.transformer import Pool, SmallTransformer

# torch's default, which the authors keep, not timm's 1e-6.
NORM_EPS = 1e-5


def create_lvvit(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    stem_width: int,
    residual_scale: float,
    drop_path_rate: float,
    img_size: int | Sequence[int] = 224,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 1000,
    mlp_ratio: float = 3.0,
    qkv_bias: bool = False,
    drop_rate: float = 0.0,
    global_pool: Pool = "token",
    token_head: bool = True,
) -> SmallTransformer:
    """Build an LV-ViT.

    Args:
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        stem_width: Channels of the stem.
        residual_scale: Lambda, which each branch of a block is divided by.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell, even; ``None`` leaves 8 cells a side or more, at most 16 px
            each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifiers out.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout before the classifier.
        global_pool: ``token``, ``avg`` or ``sequence``.
        token_head: Whether patch tokens have a classifier of their own.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.

    Source:
        Jiang et al., 2021, All Tokens Matter: Token Labeling for Training Better Vision
        Transformers, https://arxiv.org/abs/2104.10858. Sizes:
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:224-268; stochastic depth: the
        commands of its README.md:72-96.
    """
    patch_size = choose_patch(img_size, patch_size, is_even)
    return SmallTransformer(
        stem=LvvitStem(
            patch_size=patch_size, embed_dim=embed_dim, width=stem_width, in_chans=in_chans
        ),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=vit_blocks(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_path_rate=drop_path_rate,
            residual_scale=residual_scale,
            norm_eps=NORM_EPS,
        ),
        num_classes=num_classes,
        global_pool=global_pool,
        token_head=token_head,
        norm_eps=NORM_EPS,
        drop_rate=drop_rate,
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
        first_conv="patch_embed.conv1",
        facts=Facts(checks_patch=True),
        **_sizes,
    )
