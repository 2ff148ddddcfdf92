"""timm's Swin behind the token interface.

Shapes in this file:
    B    images
    M    cells of a window
    V    windows of an image
    D    channels of the last stage
    E    channels of the patches
    C    classes
    H W  image in pixels, or feature map that the windows divide
    h w  patches
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone, Tokens

# By height and width of the map, of the window and of the shift; device and dtype.
Masks = dict[tuple[Any, ...], Tensor | None]


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
    call. Here timm's blocks look it up: each is built once and kept by size, window, shift, device
    and dtype, and the blocks of a stage share it. In a compiled graph the mask is part of the graph
    instead: to keep it would make every new size compile twice.

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
        self.masks: Masks = {}
        for block in model.modules():
            if isinstance(block, SwinTransformerBlock):
                block.dynamic_mask = True
                look_up: Any = partial(shifted_window_mask, self.masks, block)
                block.get_attn_mask = look_up

    @property
    def drop_refusal(self) -> str:
        """Why it cannot leave patches out."""
        return "its windows need the whole grid of patches"

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w E"]:
        """Embed and normalise the patches."""
        return self.model.patch_embed(images)

    def encode(self, patches: Float[Tensor, "B h w E"]) -> Tokens:
        """Run embedded patches through the stages and the last norm."""
        x = self.model.norm(self.model.layers(patches))
        return Tokens(patch=x.flatten(1, 2), cls=None, grid=(x.shape[1], x.shape[2]))

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head.fc(self.model.head.drop(pooled))


def shifted_window_mask(
    masks: Masks, block: SwinTransformerBlock, x: Float[Tensor, "B H W D"]
) -> Float[Tensor, "V M M"] | None:
    """Return what keeps cells apart that only the cyclic shift brings into one window.

    Args:
        masks: Those there are; a new one is added.
        block: Whose window and shift.
        x: Map that the windows divide.

    Returns:
        timm's mask, which is added to the logits; ``None`` where the block does not shift.
    """
    if not any(block.shift_size):
        return None
    if torch.compiler.is_compiling():
        return SwinTransformerBlock.get_attn_mask(block, x)
    key = (*x.shape[1:3], *block.window_size, *block.shift_size, x.device, x.dtype)
    if key not in masks:
        # An inference tensor could not take part in a later backward pass.
        with torch.inference_mode(False):
            masks[key] = SwinTransformerBlock.get_attn_mask(block, x)
    return masks[key]
