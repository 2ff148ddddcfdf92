"""timm's CaiT behind the token interface.

Shapes in this file:
    B    images
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

from smallvit.models.tokens import AbstractBackbone, Tokens


class CaitBackbone(AbstractBackbone[Cait]):
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

    def encode(self, patches: Float[Tensor, "B h w D"]) -> Tokens:
        """Run embedded patches through both kinds of blocks and the last norm."""
        model, grid = self.model, (patches.shape[1], patches.shape[2])
        positions = resample_abs_pos_embed(
            model.pos_embed,
            new_size=list(grid),
            old_size=list(self.grid_size),
            num_prefix_tokens=0,
        )
        x = model.pos_drop(patches.flatten(1, 2) + positions)
        if model.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint_seq(model.blocks, x)
        else:
            x = model.blocks(x)
        x = model.norm(model.forward_cls(x))
        cls = None if model.global_pool == "avg" else x[:, 0]
        return Tokens(patch=x[:, model.num_prefix_tokens :], cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head(self.model.head_drop(pooled))
