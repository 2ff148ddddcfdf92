"""timm's CaiT behind the token interface.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    M    patches that the network is given
    D    embed dim
    C    classes
    H W  image in pixels
    h w  token grid
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import checkpoint_seq
from timm.models.cait import Cait
from torch import Tensor

from smallvit.models.tokens import AbstractSequenceBackbone, Tokens


class CaitBackbone(AbstractSequenceBackbone[Cait]):
    """Wrap a timm ``Cait`` for images of any size that the patch divides.

    The class token first meets the patches in the class-attention blocks, so positions belong to
    patches alone; they are interpolated (bicubic, antialiased) for any grid but the one that the
    model was made for. timm's own ``forward`` knows that one grid only.

    Args:
        model: The timm model; it keeps its own class and parameter names.

    Source:
        Touvron et al., 2021, Going deeper with Image Transformers,
        https://arxiv.org/abs/2103.17239.
    """

    def __init__(self, model: Cait) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = model.embed_dim
        patch_embed: Any = model.patch_embed
        patch_embed.strict_img_size = False
        self.patch_size = patch_embed.patch_size
        self.grid_size: tuple[int, int] = patch_embed.grid_size

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches, before positions are added."""
        height, width = self.patch_size
        grid = (images.shape[2] // height, images.shape[3] // width)
        return self.model.patch_embed(images).unflatten(1, grid)

    def add_positions(self, patches: Float[Tensor, "B h w D"]) -> Float[Tensor, "B N D"]:
        """Add positions; the class token has none."""
        positions = resample_abs_pos_embed(
            self.model.pos_embed,
            new_size=[patches.shape[1], patches.shape[2]],
            old_size=list(self.grid_size),
            num_prefix_tokens=0,
        )
        return self.model.pos_drop(patches.flatten(1, 2) + positions)

    def run(self, x: Float[Tensor, "B M D"], grid: tuple[int, int]) -> Tokens:
        """Run tokens with positions through both kinds of blocks and the last norm."""
        model = self.model
        if model.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint_seq(model.blocks, x)
        else:
            x = model.blocks(x)
        # Normed apart: patch tokens alone then leave the class blocks without a gradient, not with
        # one of zeros, which weight decay would go with.
        cls = None if model.global_pool == "avg" else model.norm(model.forward_cls(x)[:, 0])
        return Tokens(patch=model.norm(x), cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head(self.model.head_drop(pooled))
