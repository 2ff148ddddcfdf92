"""T2T-ViT: a tokens-to-token stem in front of plain, squeezed, cheap or dense blocks.

Shapes in this file:
    B    images
    T    all tokens: class token, if any, then patch tokens
    D    embed dim
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.config import use_fused_attn
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import Facts, choose_patch, register_architecture, sides
from smallvit.models.blocks import Block, Mlp, attend, check_heads, merge_heads, split_heads
from smallvit.models.t2t_module import SOFT_SPLITS, TokenLayer, TokensToToken
from smallvit.models.transformer import SmallTransformer, create_transformer

BlockKind = Literal["plain", "squeeze_excite", "ghost"]

# The authors' blocks keep torch's default: models/transformer_block.py.
NORM_EPS = 1e-5


class SqueezeExciteAttention(Attention):
    """timm's attention, whose output channels are weighted by what the mean token says.

    Args:
        embed_dim: D.
        num_heads: Attention heads.
        qkv_bias: Whether queries, keys and values have a bias.

    Source:
        Hu et al., 2018, Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507;
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_se.py.
    """

    def __init__(self, embed_dim: int, *, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__(embed_dim, num_heads, qkv_bias=qkv_bias)
        self.se_layer = SqueezeExcite(embed_dim=embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attend, then weight the channels."""
        return self.se_layer(super().forward(x))


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

    def __init__(self, embed_dim: int, *, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        for name in ("q", "k", "v"):
            self.add_module(name, nn.Linear(embed_dim, embed_dim // 2, bias=qkv_bias))
        for name in ("q", "k", "v"):
            self.add_module(f"cheap_operation_{name}", ChannelScale(embed_dim // 2))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend."""
        halves = ((getattr(self, name)(x), f"cheap_operation_{name}") for name in ("q", "k", "v"))
        q, k, v = (
            split_heads(torch.cat([half, getattr(self, copy)(half)], dim=-1), self.num_heads)
            for half, copy in halves
        )
        return self.proj(merge_heads(attend(q, k, v, scale=self.scale, fused=self.fused_attn)))


class GhostMlp(nn.Module):
    """MLP whose hidden channels are one computed group and scaled copies of it.

    Args:
        embed_dim: D, and the width of a group.
        hidden_dim: Hidden channels, the computed group included.

    Source:
        yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_ghost.py; they have three groups.
    """

    def __init__(self, *, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.copies = [f"cheap_operation{i}" for i in range(2, hidden_dim // embed_dim + 1)]
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


PARTS: dict[BlockKind, tuple[type[nn.Module], type[nn.Module]]] = {
    "plain": (Attention, Mlp),
    "squeeze_excite": (SqueezeExciteAttention, Mlp),
    "ghost": (GhostAttention, GhostMlp),
}


def create_t2t_vit(
    *,
    embed_dim: int,
    mlp_ratio: float,
    block: BlockKind = "plain",
    token_layer: TokenLayer = "performer",
    token_drop_rate: float = 0.1,
    drop_path_rate: float = 0.1,
    **sizes: Any,
) -> SmallTransformer:
    """Build a T2T-ViT.

    Queries are scaled by the inverse square root of a head's width, always, as in the network that
    the authors' main.py trains, and evaluates from a checkpoint. Only their ``pretrained=True``,
    which has no weights to load, takes that of ``embed_dim`` (yitu-opensource/T2T-ViT#62).

    Args:
        embed_dim: Width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``; a whole number for ghost blocks.
        block: Plain, with squeeze-and-excitation, or ghost: cheap copies for part of the work.
        token_layer: What stands between two splits of the stem.
        token_drop_rate: Dropout in the stem; the authors have 0.1 in a Performer, else none.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        sizes: As ``create_transformer`` has them; a patch is of 4, 8 or 16 px.

    Raises:
        ConfigError: If the patch does not suit the stem or the image, the heads the width, or the
            MLP a ghost block.

    Source:
        Yuan et al., 2021, Tokens-to-Token ViT: Training Vision Transformers from Scratch on
        ImageNet, https://arxiv.org/abs/2101.11986. Sizes: yitu-opensource/T2T-ViT@0f63dc9,
        models/t2t_vit.py:100-173.
    """
    if block == "ghost":
        _check_ghost(embed_dim, mlp_ratio)
    attn, mlp = PARTS[block]
    return create_transformer(
        stem=partial(TokensToToken, token_layer=token_layer, drop=token_drop_rate),
        suits=SOFT_SPLITS.__contains__,
        embed_dim=embed_dim,
        mlp_ratio=mlp_ratio,
        attn=attn,
        mlp=mlp,
        drop_path_rate=drop_path_rate,
        positions="sinusoid",
        blocks_first=True,
        **sizes,
    )


def create_t2t_vit_dense(
    *,
    img_size: int | Sequence[int],
    patch_size: int | None = None,
    in_chans: int = 3,
    embed_dim: int = 128,
    depths: Sequence[int] = (3, 6, 6, 4),
    growth_rate: int = 64,
    num_heads: int = 8,
    mlp_ratio: float = 2.0,
    qkv_bias: bool = False,
    token_layer: TokenLayer = "performer",
    token_drop_rate: float = 0.1,
    drop_path_rate: float = 0.1,
    **rest: Any,
) -> SmallTransformer:
    """Build a T2T-ViT of dense blocks: each appends channels, and stages end by halving them.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Pixels of a cell: 4, 8 or 16; ``None`` leaves 8 cells a side or more.
        in_chans: Colours.
        embed_dim: Width before the first block.
        depths: Blocks of each stage.
        growth_rate: Channels that a block appends.
        num_heads: Attention heads; they must divide the width of every block.
        mlp_ratio: Hidden width of an MLP over that of its block.
        qkv_bias: Whether queries, keys and values have a bias.
        token_layer: What stands between two splits of the stem.
        token_drop_rate: Dropout in the stem; the authors have 0.1 in a Performer, else none.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        rest: As ``SmallTransformer`` has it: ``num_classes``, ``global_pool``, ``drop_rate``.

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
            position = len(blocks) - stage
            blocks.append(
                Block(
                    embed_dim=width,
                    attn=Attention(width, num_heads, qkv_bias=qkv_bias),
                    mlp=Mlp(embed_dim=width, hidden_dim=int(width * mlp_ratio)),
                    drop_path=drop_path_rate * position / max(1, num_blocks - 1),
                    norm_eps=NORM_EPS,
                    growth_rate=growth_rate,
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
        positions="sinusoid",
        norm_eps=NORM_EPS,
        **rest,
    )
    for level, width in zip(model.feature_info, widths, strict=True):
        level["num_chs"] = width
    return model


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

for _name, _sizes, _layer in (
    *(("t2t_vit_" + name, sizes, "performer") for name, sizes in {**SIZES, **OTHERS}.items()),
    *(("t2t_vit_t_" + name, sizes, "transformer") for name, sizes in SIZES.items()),
):
    register_architecture(
        _name,
        create_t2t_vit,
        f"T2T-ViT with {_layer.title()} tokens, {_sizes['depth']} blocks of width "
        f"{_sizes['embed_dim']}.",
        img_size=224,
        num_classes=1000,
        token_layer=_layer,
        token_drop_rate=0.1 if _layer == "performer" else 0.0,
        **_sizes,
    )
register_architecture(
    "t2t_vit_dense",
    create_t2t_vit_dense,
    "T2T-ViT with Performer tokens and dense blocks.",
    img_size=224,
    num_classes=1000,
    facts=Facts(settings=frozenset({"patch_size", "drop_path_rate"})),
)
