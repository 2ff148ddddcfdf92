"""timm's VisionTransformer behind the token interface.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    C    classes
    H W  image in pixels
    h w  token grid
"""

from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smallvit.models.tokens import AbstractBackbone, Tokens


class VitBackbone(AbstractBackbone[VisionTransformer]):
    """Wrap a timm ``VisionTransformer`` built with ``dynamic_img_size=True``.

    Positions are interpolated (bicubic, antialiased) for any grid but the one the model was made
    for, which is what timm does for dynamic sizes.

    Args:
        model: The timm model; it keeps its own class and parameter names.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = model.embed_dim

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches, before any position or class token is added."""
        return self.model.patch_embed(images)

    def encode(self, patches: Float[Tensor, "B h w D"]) -> Tokens:
        """Run embedded patches through the transformer and its last norm."""
        model, grid = self.model, (patches.shape[1], patches.shape[2])
        x = model.norm_pre(model.patch_drop(model._pos_embed(patches)))
        x = model.norm(model.blocks(x))
        prefix = model.num_prefix_tokens
        cls = x[:, 0] if model.cls_token is not None else None
        return Tokens(patch=x[:, prefix:], cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.head(self.model.head_drop(self.model.fc_norm(pooled)))


def use_fused_attention(model: nn.Module, enabled: bool) -> None:
    """Choose between torch's fused attention and plain matrix products in every block.

    On a CPU the fused backward in bfloat16 is slow for short sequences: a training step of a
    1.08 M ViT (128 wide, 8 deep, 65 tokens, batch 256) took 2.8 times as long on two Zen 5 cores.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = enabled  # pyright: ignore[reportArgumentType]
