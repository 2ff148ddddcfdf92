"""The ViT, CaiT and Swin with shifted patches and locality self-attention, and the plain ViT.

Shapes in this file:
    B    images
    T    class tokens, one
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    h w  token grid

Source:
    Lee et al., 2021, Vision Transformer for Small-Size Datasets,
    https://arxiv.org/abs/2112.13492; files in models/ are those of
    aanna0701/SPT_LSA_ViT@54bd796, sizes those of its models/create_model.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.weight_init import trunc_normal_
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from smallvit.models.architecture import (
    WINDOWS,
    Facts,
    choose_patch,
    register_architecture,
    sides,
)
from smallvit.models.blocks import Mlp, check_heads, init_linear
from smallvit.models.locality import (
    LocalitySelfAttention,
    LocalityWindowAttention,
    TalkingHeadsLocalityAttention,
)
from smallvit.models.shifted_patch import ShiftedPatchMerging, create_patch_embed
from smallvit.models.transformer import SmallTransformer, create_transformer

# LayerScale at the start of CaiT's blocks, and from the blocks of these numbers on:
# models/cait.py, LayerScale.
LAYER_SCALE = 0.1
LATE_LAYER_SCALES = ((18, 1e-5), (24, 1e-6))


class AbsolutePositions(nn.Module):
    """Learned positions of a feature map, resampled (bicubic, antialiased) for other grids.

    Args:
        grid_size: Height and width that they are made for.
        embed_dim: D.
    """

    def __init__(self, *, grid_size: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_size[0] * grid_size[1], embed_dim))
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
        """Add positions."""
        grid = x.shape[1:3]
        positions = resample_abs_pos_embed(
            self.pos_embed,
            new_size=list(grid),
            old_size=list(self.grid_size),
            num_prefix_tokens=0,
        )
        return x + positions.unflatten(1, grid)


class ClassBlock(nn.Module):
    """CaiT's block of the class token, which reads the patch tokens as they are.

    Args:
        embed_dim: D.
        attn: Attention that takes tokens and what they read.
        hidden_dim: Width of the MLP.
        drop_path: Stochastic depth of both branches.

    Source:
        models/cait.py: unlike Touvron et al., 2021, https://arxiv.org/abs/2103.17239, the class
        token is not among what it reads, and patch tokens are not normalised.
    """

    def __init__(
        self, *, embed_dim: int, attn: nn.Module, hidden_dim: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim=embed_dim, hidden_dim=hidden_dim)
        self.gamma_1 = nn.Parameter(torch.full((embed_dim,), LAYER_SCALE))
        self.gamma_2 = nn.Parameter(torch.full((embed_dim,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B N D"], x_cls: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Return the class token after it read patch tokens ``x``; arguments are timm's."""
        x_cls = x_cls + self.drop_path(self.gamma_1 * self.attn(self.norm1(x_cls), x))
        return x_cls + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x_cls), (1, 1)))


def create_sl_vit(
    *, img_size: int | Sequence[int], plain: bool = False, **sizes: Any
) -> SmallTransformer:
    """Build the ViT with shifted patches and locality self-attention.

    Without the two it is ``gani_vit`` without biases of queries, keys and values, and with norms
    that add 1e-5.

    Args:
        img_size: Side, or height and width, in pixels.
        plain: Build the ViT that it is compared with, without its two parts.
        sizes: As ``create_transformer`` has them.

    Raises:
        ConfigError: If the patch does not divide the image, or the heads the width.

    Source:
        Lee et al., 2021, models/vit.py, plain without ``is_SPT`` and ``is_LSA``; there all blocks
        have the same stochastic depth.
    """
    return create_transformer(
        stem=partial(create_patch_embed, img_size=sides(img_size), shifted=not plain),
        img_size=img_size,
        attn=Attention if plain else LocalitySelfAttention,
        **sizes,
    )


def create_sl_cait(
    *,
    img_size: int | Sequence[int],
    patch_size: int | None = None,
    in_chans: int = 3,
    embed_dim: int = 192,
    depth: int = 24,
    depth_token_only: int = 2,
    num_heads: int = 4,
    head_dim: int = 64,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    masked: bool = True,
    drop_path_rate: float = 0.0,
    **rest: Any,
) -> Cait:
    """Build timm's CaiT with shifted patches and locality self-attention.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a patch; ``None`` leaves 8 patches a side or more, at most 16 px each.
        in_chans: Colours.
        embed_dim: Width.
        depth: Blocks of the patch tokens.
        depth_token_only: Blocks of the class token.
        num_heads: Attention heads.
        head_dim: Channels of a head.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        masked: Whether a patch token's attention to itself is masked, as in the paper; in the
            authors' code it is not.
        drop_path_rate: Stochastic depth of every block.
        rest: As timm's ``Cait`` has it: ``num_classes``, ``drop_rate``.

    Raises:
        ConfigError: If the patch does not divide the image.

    Source:
        Lee et al., 2021, models/cait.py.
    """
    patch_size = choose_patch(img_size, patch_size)
    # timm's own attention, which wants heads that divide the width, is replaced below.
    model = Cait(
        img_size=sides(img_size),  # pyright: ignore[reportArgumentType]
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth,
        depth_token_only=0,
        num_heads=1,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        norm_layer=nn.LayerNorm,
        init_values=LAYER_SCALE,
        **rest,
    )
    model.patch_embed = create_patch_embed(
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        in_chans=in_chans,
        output_fmt="NLC",
    )

    create_attention = partial(
        TalkingHeadsLocalityAttention,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        masked=masked,
    )
    blocks: list[Any] = list(model.blocks)
    for i, block in enumerate(blocks):
        block.attn = create_attention()
        for first, layer_scale in LATE_LAYER_SCALES:
            if i >= first:
                nn.init.constant_(block.gamma_1, layer_scale)
                nn.init.constant_(block.gamma_2, layer_scale)
    model.blocks_token_only = nn.ModuleList(
        ClassBlock(
            embed_dim=embed_dim,
            attn=create_attention(),
            hidden_dim=int(embed_dim * mlp_ratio),
            drop_path=drop_path_rate,
        )
        for _ in range(depth_token_only)
    )
    return model.apply(init_linear)


def create_sl_swin(
    *,
    img_size: int | Sequence[int],
    patch_size: int | None = None,
    in_chans: int = 3,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 6, 4),
    num_heads: Sequence[int] = (3, 6, 12),
    **rest: Any,
) -> SwinTransformer:
    """Build timm's Swin with shifted patches and locality self-attention, for any image size.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a patch; ``None`` leaves 16 patches a side or more, at most 4 px each.
        in_chans: Colours.
        embed_dim: Width of the first stage; it doubles from stage to stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; they must divide its width.
        rest: As timm's ``SwinTransformer`` has it: ``window_size``, ``mlp_ratio``, ``qkv_bias``,
            ``num_classes``, ``drop_rate``, ``drop_path_rate``, ...

    Raises:
        ConfigError: If the patch does not divide the image, or the heads the width.

    Source:
        Lee et al., 2021, models/swin.py, which adds learned positions to Swin's relative ones.
    """
    patch_size = choose_patch(img_size, patch_size, tokens=16, most=4, windows=True)
    height, width = sides(img_size)
    for stage, heads in enumerate(num_heads):
        check_heads(embed_dim * 2**stage, heads)
    model = SwinTransformer(
        img_size=(height, width),
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        strict_img_size=False,
        **rest,
    )
    model.patch_embed = create_patch_embed(
        img_size=(height, width), patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans
    )
    grid_size = (height // patch_size, width // patch_size)
    stages: list[Any] = list(model.layers)
    for i, stage in enumerate(stages):
        width = embed_dim * 2**i
        # timm runs a stage's merging first; in the first stage it is an identity.
        stage.downsample = (
            ShiftedPatchMerging(in_chans=width // 2, embed_dim=width)
            if i
            else AbsolutePositions(grid_size=grid_size, embed_dim=width)
        )
        for block in stage.blocks:
            block.attn = LocalityWindowAttention(block.attn)
    return model.apply(init_linear)


VIT = {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2.0}
VARIANTS: dict[str, tuple[Callable[..., nn.Module], str, dict[str, Any]]] = {
    "lee_vit": (
        create_sl_vit,
        "Plain ViT of Lee et al.: sl_vit without its two parts.",
        {**VIT, "plain": True},
    ),
    "sl_vit": (
        create_sl_vit,
        "ViT with shifted patch tokenization and locality self-attention.",
        VIT,
    ),
    "sl_cait": (
        create_sl_cait,
        "CaiT with shifted patch tokenization and locality self-attention.",
        {},
    ),
    "sl_cait_unmasked": (
        create_sl_cait,
        "sl_cait as its authors' code computes it: tokens attend to themselves.",
        {"masked": False},
    ),
    "sl_swin": (
        create_sl_swin,
        "Swin with shifted patch tokenization and locality self-attention.",
        {
            "classifier": "head.fc",
            "pooling": "avg",
            "facts": Facts(settings=WINDOWS),
            "window_size": 4,
            "mlp_ratio": 2.0,
        },
    ),
}

for _name, (_build, _doc, _arguments) in VARIANTS.items():
    register_architecture(
        _name, _build, _doc, **{"drop_path_rate": 0.1, "pooling": "token", **_arguments}
    )
