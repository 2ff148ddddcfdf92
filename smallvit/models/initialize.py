"""Initialisations of self-attention that teach a transformer, before any training, to look near.

Shapes in this file:
    T    tokens, class token included
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    d    channels of a head
    h w  token grid
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import WeightInit
from smallvit.models.tokens import AbstractBackbone

# Strength of the noise and of the diagonal in queries times keys and in values times projection:
# Trockman and Kolter, section 4.
QUERY_KEY = (0.7, 0.7)
VALUE_PROJECTION = (0.4, -0.4)
# Side of the neighbourhood that impulses are drawn from: Zheng et al., section 4.
IMPULSE_SIDE = 3
# Difference in logits between the impulse and the mean of the grid.
IMPULSE_LOGIT = 8.0
# Variance of embedded patches over that of positions, in the blocks' input: about what a network
# of 192 channels has at the start.
PATCH_VARIANCE = 1.0


@torch.no_grad()
def initialize(backbone: AbstractBackbone, weight_init: WeightInit) -> None:
    """Set the attention weights, and the positions, of a freshly built network.

    ``trunc_normal`` leaves what the architecture does by itself: truncated normals of standard
    deviation 0.02 in every transformer here. The others set positions to sines and cosines of the
    row and column, where they are learned, and draw from torch's global generator. Talking heads
    start apart: the mixtures that they have by themselves would level what is set.

    Args:
        backbone: Freshly built.
        weight_init: ``mimetic`` makes queries times keys noise plus a positive diagonal, and
            values times projection noise plus a negative one, as found in pretrained networks.
            ``impulse`` makes each head look at one neighbour, drawn at random, as the taps of a
            3 x 3 convolution do.

    Raises:
        ConfigError: If the architecture lacks what is set: attention with one matrix for queries,
            keys and values, and for ``impulse`` absolute positions.

    Source:
        Trockman and Kolter, 2023, Mimetic Initialization of Self-Attention Layers,
        https://arxiv.org/abs/2305.09828; Zheng et al., 2024, Structured Initialization for
        Attention in Vision Transformers, https://arxiv.org/abs/2404.01139. The second finds
        queries and keys by ten thousand steps of Adam on the attention map; here they are solved
        for in closed form.
    """
    if weight_init == "trunc_normal":
        return
    attentions = [
        module
        for module in backbone.model.modules()
        if isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads")
    ]
    name = type(backbone.model).__name__
    if not attentions:
        raise ConfigError(
            f"model.weight_init {weight_init!r} sets queries, keys and values, which {name} does "
            "not have: use trunc_normal"
        )
    positions = _set_positions(backbone.model)
    widths = {attention.qkv.in_features for attention in attentions}
    if weight_init == "impulse" and (positions is None or widths != {positions.shape[1]}):
        raise ConfigError(
            f"model.weight_init 'impulse' reads absolute positions in every block, which {name} "
            "does not have: use mimetic or trunc_normal"
        )
    for attention in attentions:
        _part_heads(attention)
        if weight_init == "mimetic":
            _set_mimetic(attention)
        elif positions is not None:
            _set_impulse(attention, positions, _grid_size(backbone.model))


def position_table(grid: tuple[int, int], embed_dim: int) -> Float[Tensor, "N D"]:
    """Return sines and cosines of row and column, in geometric wavelengths, half the width each.

    Source:
        Beyer et al., 2022, Better plain ViT baselines for ImageNet-1k,
        https://arxiv.org/abs/2205.01580; channels that do not fill a group of four stay 0.
    """
    num = embed_dim // 4
    wavelength = 10_000 ** (torch.arange(num) / max(num - 1, 1))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float32),
        torch.arange(grid[1], dtype=torch.float32),
        indexing="ij",
    )
    angles = [side.flatten()[:, None] / wavelength for side in (columns, rows)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, embed_dim - table.shape[1]))


def _grid_size(model: nn.Module) -> tuple[int, int]:
    holder: Any = model if hasattr(model, "grid_size") else model.patch_embed
    return (int(holder.grid_size[0]), int(holder.grid_size[1]))


def _set_positions(model: nn.Module) -> Float[Tensor, "N D"] | None:
    """Set learned positions to sines and cosines; return those of the patches, if there are any."""
    positions = getattr(model, "pos_embed", None)
    if not isinstance(positions, nn.Parameter) or positions.ndim != 3:
        return None
    height, width = _grid_size(model)
    num_prefix = positions.shape[1] - height * width
    if positions.requires_grad:
        positions.zero_()
        positions[0, num_prefix:] = position_table((height, width), positions.shape[2])
    return positions[0, num_prefix:].detach()


def _part_heads(attention: nn.Module) -> None:
    """Let no head read another one's logits or weights, in timm's CaiT and in this package's."""
    for name, parameter in attention.named_parameters():
        if name in ("proj_l.weight", "proj_w.weight", "mix_logits", "mix_weights"):
            nn.init.eye_(parameter)


def _set_mimetic(attention: nn.Module) -> None:
    qkv, proj = attention.qkv, attention.proj
    assert isinstance(qkv, nn.Linear)
    assert isinstance(proj, nn.Linear)
    width, num_heads = qkv.in_features, int(attention.num_heads)  # pyright: ignore[reportArgumentType]
    head_dim = qkv.out_features // 3 // num_heads
    queries, keys, values = qkv.weight.chunk(3)
    # Heads that are wider than the tokens keep their remaining channels as they were.
    rank = min(width, head_dim)
    for head in range(num_heads):
        left, right = _factors(width, *QUERY_KEY, rank=rank)
        rows = slice(head * head_dim, head * head_dim + rank)
        queries[rows], keys[rows] = left.mT, right
    rank = min(width, values.shape[0])
    left, right = _factors(width, *VALUE_PROJECTION, rank=rank)
    values[:rank], proj.weight[:, :rank] = left.mT, right.mT


def _factors(
    width: int, noise: float, diagonal: float, *, rank: int
) -> tuple[Float[Tensor, "D rank"], Float[Tensor, "rank D"]]:
    """Split noise plus a diagonal into two factors of the given rank."""
    matrix = noise * torch.randn(width, width) / math.sqrt(width) + diagonal * torch.eye(width)
    left, scale, right = torch.linalg.svd(matrix)
    root = scale[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _set_impulse(
    attention: nn.Module, positions: Float[Tensor, "N D"], grid: tuple[int, int]
) -> None:
    """Make each head attend, from positions alone, to the neighbour at an offset of its own."""
    qkv = attention.qkv
    assert isinstance(qkv, nn.Linear)
    num_heads = int(attention.num_heads)  # pyright: ignore[reportArgumentType]
    head_dim = qkv.out_features // 3 // num_heads
    # Blocks see normalised tokens: positions, and patches that say nothing of the place. Least
    # squares under that noise; without it, weights that read the faintest directions of the
    # positions turn patches into logits of hundreds.
    seen = F.layer_norm(positions, positions.shape[1:])
    noise = PATCH_VARIANCE * len(seen) * torch.eye(seen.shape[1], device=seen.device)
    solve = torch.linalg.solve(seen.mT @ seen + noise, seen.mT)
    key = solve @ _fourier(grid, head_dim, [0, 0])
    queries, keys, _ = qkv.weight.chunk(3)
    if qkv.bias is not None:
        qkv.bias.zero_()
    reach = IMPULSE_SIDE // 2
    for head in range(num_heads):
        # On the CPU: on the meta device, where models are counted, numbers have no value.
        offset = torch.randint(-reach, reach + 1, (2,), device="cpu").tolist()
        query = solve @ _fourier(grid, head_dim, offset)
        logits = (seen @ query) @ (seen @ key).mT * head_dim**-0.5
        peak = (logits.amax(dim=1) - logits.mean(dim=1)).mean()
        sharpness = (IMPULSE_LOGIT / peak).sqrt()
        rows = slice(head * head_dim, (head + 1) * head_dim)
        queries[rows] = sharpness * query.mT
        keys[rows] = sharpness * key.mT


def _fourier(grid: tuple[int, int], head_dim: int, offset: list[int]) -> Float[Tensor, "N d"]:
    """Return features whose dot product with those at another cell peaks at ``offset``.

    Sines and cosines of the row, then of the column, each half of unit length: their products are
    Dirichlet kernels of the distance.
    """
    halves = []
    for side, shift, num in zip(
        grid, offset, (head_dim - head_dim // 2, head_dim // 2), strict=True
    ):
        # Half periods over the side: distances up to the side keep apart.
        frequency = math.pi / side * torch.arange(1, (num + 1) // 2 + 1)
        angle = (torch.arange(side) + shift)[:, None] * frequency
        both = torch.stack([angle.cos(), angle.sin()], dim=2).flatten(1)[:, :num]
        halves.append(both / math.sqrt(max((num + 1) // 2, 1)))
    rows = halves[0][:, None].expand(-1, grid[1], -1)
    columns = halves[1][None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
