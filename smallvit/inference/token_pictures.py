"""Pictures of what a network sees in images: colours of its tokens, and where it attends.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    T    all tokens: prefix tokens, then patch tokens
    Q    tokens that attend: T, or the one that pools
    M    cells of a window
    A    images, or windows of all images
    D    embed dim
    n    attention heads
    H W  image in pixels
    h w  token grid
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.models.swin_transformer import window_reverse
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smallvit.core.errors import ConfigError
from smallvit.data.augment import normalize, to_float
from smallvit.data.canvas import GAP, LINE, VIRIDIS, Canvas, tile_side, to_pixels
from smallvit.models.measure import frozen
from smallvit.models.swin import SwinBackbone
from smallvit.models.timm_model import TimmBackbone
from smallvit.models.tokens import AbstractBackbone, Tokens

Kind = Literal["class_token", "pooling", "received", "windows", "similarity"]
KINDS: dict[Kind, str] = {
    "class_token": "last layer, attention of the class token to each patch",
    "pooling": "last layer, attention of the pooling query to each patch",
    "received": "last layer, attention that each patch receives, mean over all tokens",
    "windows": "last layer, attention that each patch receives in its window, mean over all tokens",
    "similarity": "no attention: cosine similarity of each patch token to the pooled vector",
}
SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)
TILES = (128, 192)  # in pixels, as in contact_sheet.py
TAILS = 0.02  # part of the tokens at either end of a component that share its end colour
MOST_HEADS = 16  # drawn one by one
FINE = 16  # tokens a side
EVEN = 2  # times an even spread of attention: the brightest colour unless there is more


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Where a network attends.

    Attributes:
        maps: Of each head. Attention is that to the patches alone: with the prefix tokens, if there
            are any, it sums to 1 over an image. Cosine similarity has one map.
        kind: What the maps are.
    """

    maps: Float[Tensor, "B n h w"]
    kind: Kind


class _LastAttention(TorchFunctionMode):
    """Remember the last attention that is computed, by softmax or by torch's fused attention.

    It watches torch's functions, not modules: nothing has to be changed in the network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: Callable[[], Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            query, key, _, *rest = args
            # Attention over the identity returns its weights.
            identity = torch.eye(key.shape[-2], dtype=query.dtype, device=query.device)
            identity = identity.expand(*key.shape[:-1], -1)
            self.weights = lambda: func(query, key, identity, *rest, **kwargs)
        elif func in SOFTMAX and result.ndim == 4:
            axis = kwargs["dim"] if "dim" in kwargs else args[1]
            if axis in (-1, 3):
                self.weights = lambda: result
        return result


@torch.no_grad()
def attention_maps(backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]) -> AttentionMaps:
    """Return the attention of the last layer that has any, for each image and head.

    It is the attention of the class token, of CaiT's class attention included; without a class
    token that is pooled, the mean attention that each patch receives from all tokens. Swin's
    windows are put back in place; none goes from one window to another. Where heads are mixed after
    the softmax, the maps are those before. A network that has no attention over all patches, nor
    Swin's, gives the cosine similarity of each patch token to the pooled vector instead.

    Args:
        backbone: The network; it is left as it was.
        images: Normalised.
    """
    tokens, weights = _look(backbone, images)
    return _to_maps(backbone, tokens, weights)


def token_colors(patch: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N 3"], float]:
    """Colour patch tokens by their first three principal components over all images.

    The components go to red, green and blue, each from its 2nd to its 98th percentile. A component
    points to where its largest weight is positive, so that equal tokens have equal colours.

    Args:
        patch: Patch tokens.

    Returns:
        Colours in [0, 1], and the part of the variance that the three hold, in [0, 1].

    Source:
        Oquab et al., 2023, DINOv2, https://arxiv.org/abs/2304.07193, figure 1; there the first
        component tells the background, which is left out, from the object.
    """
    flat = patch.flatten(0, 1).cpu().double()
    centered = flat - flat.mean(dim=0)
    _, values, axes = torch.linalg.svd(centered, full_matrices=False)
    axes = axes[:3]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    projected = centered @ (axes * largest.sign()).mT  # (B * N, 3 or fewer)
    projected = F.pad(projected, (0, 3 - projected.shape[1]))
    low, high = projected.quantile(torch.tensor([TAILS, 1 - TAILS], dtype=projected.dtype), dim=0)
    span = high - low
    rounding = span <= 1e-6 * flat.abs().max()  # of tokens that are all alike
    colors = ((projected - low) / span.masked_fill(rounding, 1)).clamp(0, 1)
    colors = colors.masked_fill(rounding, 0.5)
    variance = values.square()
    part = variance[:3].sum() / variance.sum().clamp(min=1e-30)
    return colors.float().unflatten(0, patch.shape[:2]), float(part)


@torch.no_grad()
def draw_tokens(
    backbone: AbstractBackbone,
    images: UInt8[Tensor, "B 3 H W"],
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path,
    *,
    title: str,
    autocast: Callable[[], torch.autocast],
) -> list[Path]:
    """Draw the colours of patch tokens (tokens_pca.png) and attention (attention.png).

    Where the grid is coarse and the network takes other sizes, both are also drawn of the images at
    twice their size: its positions are resampled, and its grid is finer.

    Args:
        backbone: The network; it is left as it was.
        images: A few, as they are packed.
        mean: Per-channel mean that inputs are normalised with.
        std: Per-channel standard deviation.
        folder: Where to.
        title: First line of both pictures.
        autocast: Precision of the forward pass.

    Returns:
        The files.
    """
    device = next(backbone.parameters()).device
    inputs = to_float(images.to(device))
    channels = torch.tensor([*mean], device=device), torch.tensor([*std], device=device)
    looks: list[tuple[str, Tokens, AttentionMaps]] = []
    for factor in (1, 2):
        pixels = inputs
        if factor == 2:
            pixels = F.interpolate(inputs, scale_factor=2, mode="bicubic").clamp(0, 1)
        try:
            with autocast():
                tokens, weights = _look(backbone, normalize(pixels, *channels))
        except (AssertionError, ConfigError, IndexError, RuntimeError, ValueError):
            if factor == 1:
                raise
            break  # a network of one size, or too little memory
        height, width = pixels.shape[2:]
        size = f"{height} px" if height == width else f"{height} x {width} px"
        size += f", {tokens.grid[0]} x {tokens.grid[1]} tokens"
        looks.append((size, tokens, _to_maps(backbone, tokens, weights)))
        if min(tokens.grid) >= FINE:
            break
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "tokens_pca.png", folder / "attention.png"]
    shown = images.cpu()
    _draw_colors(paths[0], shown, looks, title)
    _draw_attention(paths[1], shown, looks, title)
    return paths


def _look(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"]
) -> tuple[Tokens, Tensor | None]:
    """Return the tokens of images, and the weights of the last attention."""
    with frozen(backbone), _LastAttention() as last:
        tokens = backbone(images)
    return tokens, None if last.weights is None else last.weights().float()


def _to_maps(
    backbone: AbstractBackbone, tokens: Tokens, weights: Float[Tensor, "A n Q T"] | None
) -> AttentionMaps:
    num_images, num_patches = tokens.patch.shape[:2]
    # A feature map may come from attention between channels, or from windows of another kind.
    feature_map = isinstance(backbone, TimmBackbone) and backbone.layout.axes != "NLC"
    if weights is None or feature_map:
        return _similarity(tokens)
    if isinstance(backbone, SwinBackbone):
        return AttentionMaps(maps=_from_windows(backbone, tokens, weights), kind="windows")
    num_prefix = weights.shape[3] - num_patches
    over_image = weights.shape[0] == num_images and num_prefix >= 0
    if not over_image or weights.shape[2] not in (1, weights.shape[3]):
        return _similarity(tokens)
    has_class_token = getattr(backbone.model, "cls_token", None) is not None
    kind: Kind = "received"
    if weights.shape[2] == 1:
        kind = "class_token" if has_class_token else "pooling"
    elif num_prefix and has_class_token and tokens.cls is not None:
        kind = "class_token"
    rows = weights.mean(dim=2) if kind == "received" else weights[:, :, 0]
    return AttentionMaps(maps=rows[..., num_prefix:].unflatten(2, tokens.grid), kind=kind)


def _similarity(tokens: Tokens) -> AttentionMaps:
    cosine = F.cosine_similarity(tokens.patch.float(), tokens.pooled.float()[:, None], dim=2)
    return AttentionMaps(maps=cosine.unflatten(1, tokens.grid)[:, None], kind="similarity")


def _from_windows(
    backbone: SwinBackbone, tokens: Tokens, weights: Float[Tensor, "A n M M"]
) -> Float[Tensor, "B n h w"]:
    """Put the attention that each cell receives back in its place."""
    layers: list[Any] = list(backbone.model.layers)
    block = layers[-1].blocks[-1]
    window, shift, grid = block.window_size, block.shift_size, tokens.grid
    padded = [side + -side % span for side, span in zip(grid, window, strict=True)]
    num_windows = weights.shape[0] // tokens.patch.shape[0]
    cells = weights.mean(dim=2).mT.unflatten(1, window) / num_windows  # (B * W, Mh, Mw, n)
    maps = window_reverse(cells, window, *padded)[:, : grid[0], : grid[1]]
    return maps.roll(tuple(shift), (1, 2)).movedim(-1, 1)


def _draw_colors(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    looks: Sequence[tuple[str, Tokens, AttentionMaps]],
    title: str,
) -> None:
    """Draw a row of images, and a row of colours for each size."""
    width, height = _tile(images)
    rows = [("images", [to_pixels(image) for image in images])]
    for size, tokens, _ in looks:
        colors, share = token_colors(tokens.patch)
        grids = colors.unflatten(1, tokens.grid).numpy()
        rows.append((f"{size}: {share:.0%} of the variance", [*grids]))
    whole, step = len(images) * (width + GAP) - GAP, LINE + height + GAP
    canvas = Canvas(
        whole,
        len(rows) * step - GAP,
        title,
        "patch tokens coloured by their first three principal components over all images: what has "
        "one colour is alike to the network",
    )
    for row, (text, pictures) in enumerate(rows):
        canvas.text(0, row * step, text, whole)
        for i, pixels in enumerate(pictures):
            canvas.image(i * (width + GAP), row * step + LINE, width, pixels, height=height)
    canvas.save(path)


def _draw_attention(
    path: Path,
    images: UInt8[Tensor, "B 3 H W"],
    looks: Sequence[tuple[str, Tokens, AttentionMaps]],
    title: str,
) -> None:
    """Draw a row an image: itself, then for each size the map over it, alone, and by heads."""
    width, height = _tile(images)
    attention = looks[0][2]
    num_heads = attention.maps.shape[1]
    apart = 1 < num_heads <= MOST_HEADS
    across = math.ceil(num_heads / 2)
    half = GAP // 2
    small = (width - half) // 2, (height - half) // 2
    stride = 2 * (width + GAP) + (across * (small[0] + half) + half if apart else 0) + GAP
    step = LINE + height + half
    scale = (
        "bright is the most alike of an image"
        if attention.kind == "similarity"
        else f"dark is none, bright {EVEN} times an even spread, or the most if that is more"
    )
    canvas = Canvas(
        width + GAP + len(looks) * stride - 2 * GAP,
        2 * LINE + len(images) * step - half,
        title,
        f"{KINDS[attention.kind]}; {scale}",
    )
    canvas.text(0, LINE, "image", width)
    for i, image in enumerate(images):
        canvas.image(0, 2 * LINE + i * step + LINE, width, to_pixels(image), height=height)
    for number, (size, _, attention) in enumerate(looks):
        lefts = [width + 2 * GAP + number * stride + n * (width + GAP) for n in range(3)]
        canvas.text(lefts[0], 0, size, stride, weight="bold")
        canvas.text(lefts[0], LINE, "map over image", width)
        canvas.text(lefts[1], LINE, f"mean of {num_heads} heads" if num_heads > 1 else "map", width)
        if apart:
            canvas.text(lefts[2], LINE, "each head", across * small[0])
        for i, image in enumerate(images):
            top = 2 * LINE + i * step + LINE
            heads = attention.maps[i].cpu().numpy()
            values, text = _brightness(heads.mean(axis=0), attention.kind)
            canvas.text(lefts[1], top - LINE, text, width)
            shade = np.zeros((*values.shape, 4))
            # Of black; the brightest place is the image as it is.
            shade[..., 3] = 0.8 * (1 - values / max(values.max(), 1e-9))
            canvas.image(lefts[0], top, width, to_pixels(image), height=height)
            canvas.image(lefts[0], top, width, shade, height=height)
            canvas.image(lefts[1], top, width, values, height=height, **VIRIDIS)
            for head in range(num_heads if apart else 0):
                left = lefts[2] + head % across * (small[0] + half)
                upper = top + head // across * (small[1] + half)
                values, _ = _brightness(heads[head], attention.kind)
                canvas.image(left, upper, small[0], values, height=small[1], **VIRIDIS)
    canvas.save(path)


def _brightness(values: np.ndarray, kind: Kind) -> tuple[np.ndarray, str]:
    """Scale a map to [0, 1], and say what its bounds are."""
    if kind == "similarity":
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, 1e-9), f"{low:.2f} to {high:.2f}"
    even = values * values.size  # 1 where attention is spread evenly over the patches
    return even / max(EVEN, even.max()), f"{even.min():.1f} to {even.max():.1f} x even"


def _tile(images: UInt8[Tensor, "B 3 H W"]) -> tuple[int, int]:
    """Return the width and height at which an image is shown."""
    side = tile_side(images.shape[3], TILES)
    return side, round(side * images.shape[2] / images.shape[3])
