"""timm's VisionTransformer behind the token interface.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    M    patches that the network is given
    T    prefix and patch tokens
    D    embed dim
    C    classes
    H W  image in pixels
    h w  token grid
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smallvit.models.tokens import AbstractSequenceBackbone, Tokens


class VitBackbone(AbstractSequenceBackbone[VisionTransformer]):
    """Wrap a timm ``VisionTransformer`` built with ``dynamic_img_size=True``.

    Positions are interpolated (bicubic, antialiased) for any grid but the one the model was made
    for, which is what timm does for dynamic sizes.

    Args:
        model: The timm model; it keeps its own class and parameter names.

    Attributes:
        published_positions: Whether to interpolate as the code of DINO and of Gani et al. does:
            without antialiasing, and by a factor of a tenth of a token more than the grids', which
            kept the number of tokens whole. For a model with a class token and no others.

    Source:
        Of ``published_positions``: hananshafi/vits-for-small-scale-datasets@43a7493,
        models/vit.py, interpolate_pos_encoding.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = model.embed_dim
        self.published_positions = False
        # Of a hybrid, the patch of its convolutions' feature map, in pixels.
        self.patch_size = model.patch_embed.feat_ratio(as_scalar=False)

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches, before any position or class token is added."""
        return self.model.patch_embed(images)

    def add_positions(self, patches: Float[Tensor, "B h w D"]) -> Float[Tensor, "B T D"]:
        """Add positions, interpolated for any grid but the model's own."""
        model, grid = self.model, (patches.shape[1], patches.shape[2])
        old = model.patch_embed.grid_size
        if not self.published_positions or old is None or grid == tuple(old):
            return model.patch_drop(model._pos_embed(patches))
        assert model.pos_embed is not None
        assert model.cls_token is not None
        prefix, table = model.pos_embed.split([1, model.pos_embed.shape[1] - 1], dim=1)
        factor = [(new + 0.1) / side for new, side in zip(grid, old, strict=True)]
        image = table.mT.unflatten(2, old)  # (1, N, D) -> (1, D, h, w)
        image = F.interpolate(image.float(), scale_factor=factor, mode="bicubic")
        positions = torch.cat([prefix, image.flatten(2).mT.to(table.dtype)], dim=1)
        cls = model.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([cls.to(patches.dtype), patches.flatten(1, 2)], dim=1)
        return model.pos_drop(x + positions)

    def run(self, x: Float[Tensor, "B T D"], grid: tuple[int, int]) -> Tokens:
        """Run tokens with positions through the transformer and its last norm."""
        model = self.model
        x = model.norm_pre(x)
        if model.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint_seq(model.blocks, x)
        else:
            x = model.blocks(x)
        x = model.norm(x)
        plain_mean = model.global_pool == "avg" and not model.pool_include_prefix
        cls = None if plain_mean else model.pool(x)
        return Tokens(patch=x[:, model.num_prefix_tokens :], cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head(self.model.head_drop(self.model.fc_norm(pooled)))
