"""A trained network as an annotator: its classifier applied at every place.

Shapes in this file:
    B    images
    C    classes
    D    embed dim
    N    patch tokens (N = h * w)
    H W  image in pixels
    h w  token grid
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.models.tokens import AbstractBackbone


class Teacher(nn.Module):
    """Dense class probabilities of a frozen network.

    Pooling is left out and the classifier reads every token by itself: for a CNN that ends in a
    mean over its feature map, the mean of the dense logits is exactly its image logit.

    Args:
        backbone: Trained network; it is put in evaluation mode.
    """

    def __init__(self, backbone: AbstractBackbone) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return probabilities at every place; the channel axis sums to 1."""
        tokens = self.backbone(images)
        logits = self.backbone.classify_tokens(tokens.patch).float()  # (B, N, C)
        return logits.softmax(dim=-1).mT.unflatten(2, tokens.grid)
