"""T2T-ViT: a tokens-to-token stem in front of plain, squeezed, cheap or dense blocks.

Shapes in this file:
    B    images
    T    all tokens: class token, if any, then patch tokens
    D    embed dim
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import Facts, register_architecture, sides
from smallvit.models.blocks import Block, Mlp, attend, check_heads, merge_heads, split_heads
from smallvit.models.patch_embed import choose_patch
from smallvit.models.t2t_module import SOFT_SPLITS, TokenLayer, TokensToToken
from smallvit.models.transformer import Pool, SmallTransformer

BlockKind = Literal["plain", "squeeze_excite", "ghost"]

# The authors' blocks keep torch's default: models/transformer_block.py.
NORM_EPS = 1e-5


class SqueezeExciteAttention(nn.Module):
    """Attention whose output channels are weighted by what the mean token says.

    Args:
        embed_dim: D.
        num_heads: Attention heads.
        qkv_bias: Whether queries, keys and values have a bias.

    Source:
        Hu et al., 2018, Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507;
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_se.py.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.se_layer = SqueezeExcite(embed_dim=embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend, then weight the channels."""
        q, k, v = (split_heads(y, self.num_heads) for y in self.qkv(x).chunk(3, dim=-1))
        attended = attend(q, k, v, scale=self.scale, fused=self.fused_attn)
        return self.se_layer(self.proj(merge_heads(attended)))


class SqueezeExcite(nn.Module):
    """Weight each channel by a factor in [0, 1] that two layers make of the mean token.

    Args:
        embed_dim: D.
        reduction: D over the width between the layers.
    """

    def __init__(self, *, embed_dim: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(1, embed_dim // reduction)
        self.fc = nn.Sequential(
            nn.Linear(embed_dim, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, embed_dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Weight the channels."""
        return x * self.fc(x.mean(dim=1, keepdim=True))


class GhostAttention(nn.Module):
    """Attention whose queries, keys and values are half computed, half scaled copies.

    Args:
        embed_dim: D.
        num_heads: Attention heads.
        qkv_bias: Whether queries, keys and values have a bias.

    Source:
        Han et al., 2020, GhostNet, https://arxiv.org/abs/1911.11907;
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_ghost.py.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(embed_dim, embed_dim // 2, bias=qkv_bias)
        self.k = nn.Linear(embed_dim, embed_dim // 2, bias=qkv_bias)
        self.v = nn.Linear(embed_dim, embed_dim // 2, bias=qkv_bias)
        self.cheap_operation_q = ChannelScale(embed_dim // 2)
        self.cheap_operation_k = ChannelScale(embed_dim // 2)
        self.cheap_operation_v = ChannelScale(embed_dim // 2)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend."""
        halves = (
            (self.q(x), self.cheap_operation_q),
            (self.k(x), self.cheap_operation_k),
            (self.v(x), self.cheap_operation_v),
        )
        q, k, v = (
            split_heads(torch.cat([half, copy(half)], dim=-1), self.num_heads)
            for half, copy in halves
        )
        return self.proj(merge_heads(attend(q, k, v, scale=self.scale, fused=self.fused_attn)))


class GhostMlp(nn.Module):
    """MLP whose hidden channels are one computed group and scaled copies of it.

    Args:
        embed_dim: D, and the width of a group.
        mlp_ratio: Groups of hidden channels, the computed one included.

    Source:
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_ghost.py; they have three groups.
    """

    def __init__(self, *, embed_dim: int, mlp_ratio: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(mlp_ratio * embed_dim, embed_dim)
        self.copies = [f"cheap_operation{i}" for i in range(2, mlp_ratio + 1)]
        for name in self.copies:
            self.add_module(name, ChannelScale(embed_dim))

    def forward(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Float[Tensor, "B T D"]:
        """Transform each token; the grid is not needed."""
        x = self.act(self.fc1(x))
        return self.fc2(torch.cat([x, *(self.act(getattr(self, c)(x)) for c in self.copies)], -1))


class ChannelScale(nn.Module):
    """One factor a channel: a depth-wise convolution of a single tap, stored in its shape.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # As torch starts the convolution.
        self.weight = nn.Parameter(torch.empty(dim, 1, 1).uniform_(-1, 1))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Scale the channels."""
        return x * self.weight.flatten()


class DenseBlock(nn.Module):
    """Transformer block that appends a narrow view of its result to what it reads.

    Args:
        embed_dim: D.
        growth_rate: Channels that it appends.
        attn: Attention, tokens in and out.
        mlp: Takes tokens and grid.
        drop_path: Stochastic depth of both branches.

    Source:
        Huang et al., 2017, Densely Connected Convolutional Networks,
        https://arxiv.org/abs/1608.06993; yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_dense.py.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        growth_rate: int,
        attn: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.dense_linear = nn.Linear(embed_dim, growth_rate)

    def forward(
        self, x: Float[Tensor, "B T D"], grid: tuple[int, int]
    ) -> Float[Tensor, "B T D+{self.dense_linear.out_features}"]:
        """Append ``growth_rate`` channels."""
        y = x + self.drop_path(self.attn(self.norm1(x)))
        y = y + self.drop_path(self.mlp(self.norm2(y), grid))
        return torch.cat([x, self.dense_linear(y)], dim=-1)


class Transition(nn.Module):
    """Halve the width between two stages of dense blocks.

    Args:
        embed_dim: D.
    """

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim // 2)
        self.act = nn.GELU()

    def forward(
        self, x: Float[Tensor, "B T D"], grid: tuple[int, int]
    ) -> Float[Tensor, "B T D//2"]:
        """Transform each token; the grid is not needed."""
        return self.act(self.linear(x))


def create_t2t_vit(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    img_size: int | Sequence[int] = 224,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 1000,
    qkv_bias: bool = False,
    block: BlockKind = "plain",
    token_layer: TokenLayer = "performer",
    token_drop_rate: float = 0.1,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    global_pool: Pool = "token",
) -> SmallTransformer:
    """Build a T2T-ViT.

    Queries are scaled by the inverse square root of a head's width, always, as in the network that
    the authors' main.py trains, and evaluates from a checkpoint. Only their ``pretrained=True``,
    which has no weights to load, takes that of ``embed_dim`` (yitu-opensource/T2T-ViT#62).

    Args:
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``; a whole number for ghost blocks.
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell: 4, 8 or 16; ``None`` leaves 8 cells a side or more.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        qkv_bias: Whether queries, keys and values have a bias.
        block: Plain, with squeeze-and-excitation, or ghost: cheap copies for part of the work.
        token_layer: What stands between two splits of the stem.
        token_drop_rate: Dropout in the stem; the authors have 0.1 in a Performer, else none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        global_pool: ``token``, ``avg`` or ``sequence``.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, the heads the width, or the
            MLP a ghost block.

    Source:
        Yuan et al., 2021, Tokens-to-Token ViT: Training Vision Transformers from Scratch on
        ImageNet, https://arxiv.org/abs/2101.11986. Sizes: yitu-opensource/T2T-ViT@0f63dc9,
        models/t2t_vit.py:100-173.
    """
    check_heads(embed_dim, num_heads)
    if block == "ghost":
        _check_ghost(embed_dim, mlp_ratio)
    blocks = []
    for i in range(depth):
        attn, mlp = _parts(
            block,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
        )
        blocks.append(
            Block(
                embed_dim=embed_dim,
                attn=attn,
                mlp=mlp,
                drop_path=drop_path_rate * i / max(1, depth - 1),
                norm_eps=NORM_EPS,
            )
        )
    patch_size = choose_patch(img_size, patch_size, SOFT_SPLITS.__contains__)
    return SmallTransformer(
        stem=TokensToToken(
            patch_size=patch_size,
            embed_dim=embed_dim,
            in_chans=in_chans,
            token_layer=token_layer,
            drop=token_drop_rate,
        ),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=blocks,
        num_classes=num_classes,
        positions="sinusoid",
        global_pool=global_pool,
        norm_eps=NORM_EPS,
        drop_rate=drop_rate,
    )


def create_t2t_vit_dense(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int | None = None,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = 128,
    depths: Sequence[int] = (3, 6, 6, 4),
    growth_rate: int = 64,
    num_heads: int = 8,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    token_layer: TokenLayer = "performer",
    token_drop_rate: float = 0.1,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    global_pool: Pool = "token",
) -> SmallTransformer:
    """Build a T2T-ViT of dense blocks: each appends channels, and stages end by halving them.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell: 4, 8 or 16; ``None`` leaves 8 cells a side or more.
        in_chans: Colours.
        num_classes: Classes; 0 leaves the classifier out.
        embed_dim: Width before the first block.
        depths: Blocks of each stage.
        growth_rate: Channels that a block appends.
        num_heads: Attention heads; they must divide the width of every block.
        mlp_ratio: Hidden width of an MLP over that of its block.
        qkv_bias: Whether queries, keys and values have a bias.
        token_layer: What stands between two splits of the stem.
        token_drop_rate: Dropout in the stem; the authors have 0.1 in a Performer, else none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        global_pool: ``token``, ``avg`` or ``sequence``.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, or the heads a width.

    Source:
        Yuan et al., 2021, https://arxiv.org/abs/2101.11986, section 3.2;
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_dense.py. There the stochastic depth of a
        block is that of its stage's place among 12 blocks, 0.027 at most; here it rises over all.
    """
    blocks: list[nn.Module] = []
    widths: list[int] = []
    width, num_blocks = embed_dim, sum(depths)
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            check_heads(width, num_heads)
            attn, mlp = _parts(
                "plain",
                embed_dim=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
            )
            place = len(blocks) - stage
            blocks.append(
                DenseBlock(
                    embed_dim=width,
                    growth_rate=growth_rate,
                    attn=attn,
                    mlp=mlp,
                    drop_path=drop_path_rate * place / max(1, num_blocks - 1),
                )
            )
            width += growth_rate
            widths.append(width)
        if stage < len(depths) - 1:
            blocks.append(Transition(embed_dim=width))
            width //= 2
            widths.append(width)
    patch_size = choose_patch(img_size, patch_size, SOFT_SPLITS.__contains__)
    model = SmallTransformer(
        stem=TokensToToken(
            patch_size=patch_size,
            embed_dim=embed_dim,
            in_chans=in_chans,
            token_layer=token_layer,
            drop=token_drop_rate,
        ),
        img_size=sides(img_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        blocks=blocks,
        num_features=width,
        num_classes=num_classes,
        positions="sinusoid",
        global_pool=global_pool,
        norm_eps=NORM_EPS,
        drop_rate=drop_rate,
    )
    for level, width in zip(model.feature_info, widths, strict=True):
        level["num_chs"] = width
    return model


def _parts(
    block: BlockKind, *, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool
) -> tuple[nn.Module, nn.Module]:
    heads = {"num_heads": num_heads, "qkv_bias": qkv_bias}
    match block:
        case "plain":
            attn = Attention(embed_dim, **heads)
        case "squeeze_excite":
            attn = SqueezeExciteAttention(embed_dim=embed_dim, **heads)
        case "ghost":
            attn = GhostAttention(embed_dim=embed_dim, **heads)
            return attn, GhostMlp(embed_dim=embed_dim, mlp_ratio=int(mlp_ratio))
    return attn, Mlp(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio))


def _check_ghost(embed_dim: int, mlp_ratio: float) -> None:
    if embed_dim % 2:
        raise ConfigError(
            f"ghost blocks compute half of embed_dim ({embed_dim}), which must be even; "
            f"{embed_dim + 1} would do"
        )
    if mlp_ratio != int(mlp_ratio) or mlp_ratio < 1:
        raise ConfigError(
            f"mlp_ratio ({mlp_ratio}) of a ghost block counts groups of channels; "
            f"{max(1, round(mlp_ratio))} would do"
        )


SIZES: dict[str, dict[str, Any]] = {
    "7": {"embed_dim": 256, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0},
    "10": {"embed_dim": 256, "depth": 10, "num_heads": 4, "mlp_ratio": 2.0},
    "12": {"embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_ratio": 2.0},
    "14": {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0},
    "19": {"embed_dim": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3.0},
    "24": {"embed_dim": 512, "depth": 24, "num_heads": 8, "mlp_ratio": 3.0},
}
OTHERS: dict[str, dict[str, Any]] = {
    "14_se": {**SIZES["14"], "block": "squeeze_excite"},
    "14_resnext": {**SIZES["14"], "num_heads": 32},
    "14_wide": {"embed_dim": 768, "depth": 4, "num_heads": 12, "mlp_ratio": 3.0},
    "16_ghost": {**SIZES["14"], "depth": 16, "block": "ghost"},
}

for _name, _sizes in {**SIZES, **OTHERS}.items():
    register_architecture(
        f"t2t_vit_{_name}",
        create_t2t_vit,
        f"T2T-ViT with Performer tokens, {_sizes['depth']} blocks of width {_sizes['embed_dim']}.",
        facts=Facts(checks_patch=True),
        **_sizes,
    )
for _name, _sizes in SIZES.items():
    register_architecture(
        f"t2t_vit_t_{_name}",
        create_t2t_vit,
        f"T2T-ViT with Transformer tokens, {_sizes['depth']} blocks of width "
        f"{_sizes['embed_dim']}.",
        token_layer="transformer",
        token_drop_rate=0.0,
        facts=Facts(checks_patch=True),
        **_sizes,
    )
register_architecture(
    "t2t_vit_dense",
    create_t2t_vit_dense,
    "T2T-ViT with Performer tokens and dense blocks.",
    facts=Facts(settings=frozenset({"patch_size", "drop_path_rate"}), checks_patch=True),
)
