"""Compact convolutional transformers, registered with timm: ``cct_7_3x1``.

Shapes in this file:
    B    images
    T    tokens; there is no class token
    D    embed dim
"""

from collections.abc import Sequence

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from torch import Tensor, nn

from smallvit.models.architecture import Facts, register_architecture, sides
from smallvit.models.blocks import Mlp, check_heads
from smallvit.models.patch_embed import ConvTokenizer, choose_patch, is_power_of_two
from smallvit.models.transformer import Pool, SmallTransformer

# torch's default, which the authors keep, not timm's 1e-6.
NORM_EPS = 1e-5


class CctBlock(nn.Module):
    """Transformer block that normalises its residual stream between attention and MLP.

    ``x = norm2(x + attn(norm1(x)))``, then ``x + mlp(x)``: what leaves the second norm is both the
    MLP's input and the shortcut around it. A pre-norm block has the norm on the branch alone.

    Args:
        embed_dim: D.
        attn: Attention, tokens in and out.
        mlp: An ``Mlp``, or anything that takes tokens and grid.
        drop_path: Stochastic depth of both branches.

    Source:
        SHI-Labs/Compact-Transformers@82070a9, src/utils/transformers.py, TransformerEncoderLayer;
        ``norm1`` and ``norm2`` are its ``pre_norm`` and ``norm1``.
    """

    def __init__(
        self, *, embed_dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Float[Tensor, "B T D"]:
        """Add attention, normalise, then add the MLP."""
        x = self.norm2(x + self.drop_path(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(x, grid))


def create_cct(
    *,
    img_size: int | Sequence[int] = 32,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 10,
    embed_dim: int = 256,
    depth: int = 7,
    num_heads: int = 4,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.1,
    drop_path_rate: float = 0.1,
    global_pool: Pool = "sequence",
) -> SmallTransformer:
    """Build a compact convolutional transformer; the defaults are CCT-7/3x1.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell, a power of two, one layer of the tokenizer for each halving;
            ``None`` leaves 16 cells a side or more, at most 16 px each.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        global_pool: ``sequence``, ``avg`` or ``token``.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads the width.

    Source:
        Hassani et al., 2021, Escaping the Big Data Paradigm with Compact Transformers,
        https://arxiv.org/abs/2104.05704. SHI-Labs/Compact-Transformers@0365097, src/cct.py:
        ``cct_7_3x1_32`` keeps the class's dropout 0, attention dropout 0.1 and stochastic depth
        0.1. Their nets for 224 px have two 7x7 convolutions of stride 2; here the tokenizer gains
        3x3 layers of stride 1.
    """
    check_heads(embed_dim, num_heads)
    patch_size = choose_patch(img_size, patch_size, is_power_of_two, tokens=16)
    blocks = [
        CctBlock(
            embed_dim=embed_dim,
            attn=Attention(embed_dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop_rate),
            mlp=Mlp(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio)),
            drop_path=drop_path_rate * i / max(1, depth - 1),
        )
        for i in range(depth)
    ]
    return SmallTransformer(
        stem=ConvTokenizer(patch_size=patch_size, embed_dim=embed_dim, in_chans=in_chans),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=blocks,
        num_classes=num_classes,
        global_pool=global_pool,
        norm_eps=NORM_EPS,
        pos_std=0.2,
        drop_rate=drop_rate,
    )


register_architecture(
    "cct_7_3x1",
    create_cct,
    "CCT-7/3x1: 7 blocks of width 256, a 3x3 tokenizer and sequence pooling.",
    img_size=32,
    num_classes=10,
    first_conv="patch_embed.layers.0.0",
    facts=Facts(checks_patch=True),
)
