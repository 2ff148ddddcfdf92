"""Parts of the architectures that timm lacks: attention by heads, MLPs, blocks and their start.

Shapes in this file:
    B    images
    T    all tokens: class token, if any, then patch tokens
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    n    attention heads
    d    channels of a head
    h w  token grid
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from smallvit.core.errors import ConfigError


def split_heads(x: Float[Tensor, "B T D"], num_heads: int) -> Float[Tensor, "B n T d"]:
    """Give each head its share of the channels."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def attend(
    q: Float[Tensor, "B n T d"],
    k: Float[Tensor, "B n T d"],
    v: Float[Tensor, "B n T d"],
    *,
    scale: float,
    fused: bool,
) -> Float[Tensor, "B n T d"]:
    """Return softmax attention, by torch's fused kernel or by plain matrix products."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return ((q * scale) @ k.mT).softmax(dim=-1) @ v


def merge_heads(x: Float[Tensor, "B n T d"]) -> Float[Tensor, "B T n*d"]:
    """Put the channels of all heads side by side again."""
    return x.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers and a GELU, with a depth-wise convolution over the grid if asked for.

    The convolution mixes each hidden channel with its eight neighbours; prefix tokens pass it by.
    It adds to what it reads, so a convolution of zeros leaves the plain MLP.

    Args:
        embed_dim: D.
        hidden_dim: Width between the layers.
        depthwise: Whether to convolve the hidden channels over the grid.
        drop: Dropout after each layer.

    Source:
        Li et al., 2021, LocalViT, https://arxiv.org/abs/2104.05707; Lu et al., 2022, Bridging the
        Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets
        (DHVT), https://arxiv.org/abs/2210.05958, section 3.2 (without its re-weighting of the
        class token).
    """

    def __init__(
        self, *, embed_dim: int, hidden_dim: int, depthwise: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.dwconv = (
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
            if depthwise
            else None
        )
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Float[Tensor, "B T D"]:
        """Transform each token, over the grid if the MLP convolves."""
        x = self.act(self.fc1(x))
        if self.dwconv is not None:
            num_prefix = x.shape[1] - grid[0] * grid[1]
            prefix, patch = x[:, :num_prefix], x[:, num_prefix:]
            image = patch.mT.unflatten(2, grid)  # (B, N, D) -> (B, D, h, w)
            patch = patch + self.act(self.dwconv(image)).flatten(2).mT
            x = torch.cat([prefix, patch], dim=1)
        return self.drop(self.fc2(self.drop(x)))


class Block(nn.Module):
    """Transformer block whose two branches are given; the plain one has both norms on branches.

    Args:
        embed_dim: D.
        attn: Attention, tokens in and out.
        mlp: An ``Mlp``, or anything that takes tokens and grid.
        drop_path: Stochastic depth of both branches.
        residual_scale: What each branch is divided by (LV-ViT).
        norm_eps: Added to the variance in both norms.
        norms_stream: Whether what leaves the second norm is both the MLP's input and the shortcut
            around it (CCT): ``x = norm2(x + attn(norm1(x)))``, then ``x + mlp(x)``.
        growth_rate: Channels of a narrow view of its result that the block appends to what it
            reads (dense T2T-ViT); 0 returns the result itself.

    Source:
        ``norms_stream``: SHI-Labs/Compact-Transformers@82070a9, src/utils/transformers.py,
        TransformerEncoderLayer; ``norm1`` and ``norm2`` are its ``pre_norm`` and ``norm1``.
        ``growth_rate``: Huang et al., 2017, Densely Connected Convolutional Networks,
        https://arxiv.org/abs/1608.06993; yitu-opensource/T2T-ViT@0f63dc9, models/t2t_vit_dense.py.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        residual_scale: float = 1.0,
        norm_eps: float = 1e-6,
        norms_stream: bool = False,
        growth_rate: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual_scale = residual_scale
        self.norms_stream = norms_stream
        self.dense_linear = nn.Linear(embed_dim, growth_rate) if growth_rate else None

    def forward(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Float[Tensor, "B T _"]:
        """Add attention, then the MLP; append a part of that if the block is dense."""
        y = x + self.drop_path(self.attn(self.norm1(x))) / self.residual_scale
        normed = self.norm2(y)
        y = normed if self.norms_stream else y
        y = y + self.drop_path(self.mlp(normed, grid)) / self.residual_scale
        return y if self.dense_linear is None else torch.cat([x, self.dense_linear(y)], dim=-1)


def check_heads(embed_dim: int, num_heads: int, *, section: str = "") -> None:
    """Refuse a number of attention heads that does not divide the width.

    Args:
        embed_dim: Width.
        num_heads: Attention heads.
        section: What stands before the names of both settings.

    Raises:
        ConfigError: With the numbers that would.
    """
    if embed_dim % num_heads:
        fits = [str(n) for n in range(1, min(embed_dim, 2 * num_heads) + 1) if embed_dim % n == 0]
        raise ConfigError(
            f"{section}num_heads ({num_heads}) must divide {section}embed_dim ({embed_dim}); "
            f"{', '.join(fits)} would"
        )


def init_linear(module: nn.Module) -> None:
    """Start a linear layer, and leave any other module, as vision transformers do.

    Weights are a truncated normal of standard deviation 0.02, biases 0; for ``nn.Module.apply``.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
