"""timm's Swin behind the token interface.

Shapes in this file:
    B    images
    M    cells of a window
    W    windows of an image
    D    channels: of a stage, then of the last one
    E    channels of the patches
    C    classes
    H W  image in pixels
    h w  feature map of a stage
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import checkpoint
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone, Tokens

# Added to the attention between cells that only the cyclic shift brings together; timm's value.
MASKED = -100.0

# Height and width of the padded map, of the window and of the shift; device and dtype.
MaskKey = tuple[int, int, tuple[int, int], tuple[int, int], torch.device, torch.dtype]


class SwinBackbone(AbstractBackbone[SwinTransformer]):
    """Wrap a timm ``SwinTransformer`` for images of any size that the patch divides.

    At every size the blocks keep the windows and shifts of the size that the model was built for,
    so that no relative position has to be resampled: a view of half the side has a quarter of the
    windows. This is what timm does with ``dynamic_img_size=True``, and gives the same numbers.

    A map that the window does not divide, or that is smaller than it, is filled up with zeros below
    and to the right. As in timm and in the authors' code the filling is not masked: it takes part
    in attention as keys and values that are the bias of their projection, and is then cut off. As
    in timm it comes after the shift, so that opposite edges of such a map may meet in a window.

    The authors' code, and timm's for dynamic sizes, build the mask of shifted windows at every
    call. Here each is built once and kept by size, window, shift, device and dtype, and the blocks
    of a stage share it. In a compiled graph the mask is part of the graph instead: to keep it
    would make every new size compile twice.

    Args:
        model: The timm model; it keeps its own class and parameter names. The ``attn`` of a block
            and the ``downsample`` of a stage may be other modules with the same call.

    Raises:
        ConfigError: If the model pools by anything but the mean.

    Source:
        Liu et al., 2021, Swin Transformer, https://arxiv.org/abs/2103.14030, section 3.2;
        hananshafi/vits-for-small-scale-datasets@43a7493, models/swin.py.
    """

    def __init__(self, model: SwinTransformer) -> None:
        super().__init__()
        if model.global_pool != "avg":
            raise ConfigError(f"global_pool ({model.global_pool!r}) of a Swin must be 'avg'")
        self.model = model
        self.embed_dim = model.num_features
        patch_embed: Any = model.patch_embed
        patch_embed.strict_img_size = False
        self.patch_size = patch_embed.patch_size
        self.masks: dict[MaskKey, Tensor] = {}

    @property
    def drop_refusal(self) -> str:
        """Why it cannot leave patches out."""
        return "its windows need the whole grid of patches"

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w E"]:
        """Embed and normalise the patches."""
        return self.model.patch_embed(images)

    def encode(self, patches: Float[Tensor, "B h w E"]) -> Tokens:
        """Run embedded patches through the stages and the last norm."""
        x = patches
        stages: list[Any] = list(self.model.layers)
        for stage in stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                if stage.grad_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(self.run_block, block, x)
                else:
                    x = self.run_block(block, x)
        x = self.model.norm(x)
        return Tokens(patch=x.flatten(1, 2), cls=None, grid=(x.shape[1], x.shape[2]))

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head.fc(self.model.head.drop(pooled))

    def run_block(
        self, block: SwinTransformerBlock, x: Float[Tensor, "B h w D"]
    ) -> Float[Tensor, "B h w D"]:
        """Add the window attention, then the MLP, of one of timm's blocks."""
        x = x + block.drop_path1(self.attend(block, block.norm1(x)))
        return x + block.drop_path2(block.mlp(block.norm2(x)))

    def attend(
        self, block: SwinTransformerBlock, x: Float[Tensor, "B h w D"]
    ) -> Float[Tensor, "B h w D"]:
        """Shift, fill up, attend within windows, cut off and shift back."""
        height, width = x.shape[1], x.shape[2]
        window, (down, right) = block.window_size, block.shift_size
        if down or right:
            x = x.roll((-down, -right), (1, 2))
        below, beside = -height % window[0], -width % window[1]
        if below or beside:  # filling up by nothing would still copy
            x = F.pad(x, (0, 0, 0, beside, 0, below))
        padded = (height + below, width + beside)
        windows = window_partition(x, window).flatten(1, 2)  # (B * W, M, D)
        windows = block.attn(windows, mask=self.mask(block, x))
        x = window_reverse(windows, window, *padded)[:, :height, :width]
        return x.roll((down, right), (1, 2)) if down or right else x

    def mask(
        self, block: SwinTransformerBlock, x: Float[Tensor, "B h w D"]
    ) -> Float[Tensor, "W M M"] | None:
        """Return the mask of a block for a filled-up map; ``None`` where it does not shift."""
        window, shift = block.window_size, block.shift_size
        if not any(shift):
            return None
        key = (x.shape[1], x.shape[2], window, shift, x.device, x.dtype)
        if torch.compiler.is_compiling():
            return shifted_window_mask(*key)
        if key not in self.masks:
            # An inference tensor could not take part in a later backward pass.
            with torch.inference_mode(False):
                self.masks[key] = shifted_window_mask(*key)
        return self.masks[key]


def shifted_window_mask(
    height: int,
    width: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "W M M"]:
    """Return what keeps cells apart that only the cyclic shift brings into one window.

    Args:
        height: Rows of the map, a multiple of the window's.
        width: Columns of the map, a multiple of the window's.
        window: Height and width of a window, in cells.
        shift: How far the map was rolled up and to the left, in cells.
        device: Where the mask is used.
        dtype: Of the mask.

    Returns:
        0 within a region and ``MASKED`` across regions: the last ``shift`` rows came round from
        the top, and they share their windows with the rows before them.
    """
    regions = []
    for side, span, step in ((height, window[0], shift[0]), (width, window[1], shift[1])):
        place = torch.arange(side, device=device)
        # Cells of different windows never meet, so only the last window has to be told in two.
        regions.append((place >= side - span).long() + (place >= side - step).long())
    region = regions[0][:, None] * 3 + regions[1]  # (h, w)
    cells = window_partition(region[None, :, :, None], window).flatten(1)  # (W, M)
    apart = cells[:, :, None] != cells[:, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, MASKED)
