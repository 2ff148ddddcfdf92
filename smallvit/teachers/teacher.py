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

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone


class Teacher(nn.Module):
    """Dense class probabilities of a frozen network.

    Pooling is left out and the classifier reads every token by itself: for a network that pools
    by the mean of its patch tokens, the mean of the dense logits is exactly its image logit. A
    token head annotates in place of the classifier, unless it was never trained: LV-ViT's starts
    at zero and stays there without token labels.

    Args:
        backbone: Trained network; it is put in evaluation mode.
        temperature: Logits are divided by it; above 1 makes the probabilities flatter.
        flip: Average the probabilities with those of the mirrored image, mirrored back.

    Raises:
        ConfigError: If the temperature is not above 0.
    """

    def __init__(
        self, backbone: AbstractBackbone, *, temperature: float = 1.0, flip: bool = False
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"the teacher's temperature must be above 0, got {temperature}")
        self.backbone = backbone.eval().requires_grad_(False)
        self.temperature = temperature
        self.flip = flip
        head = backbone.token_head
        self.has_silent_head = head is not None and not any(p.any() for p in head.parameters())

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return probabilities at every place; the channel axis sums to 1."""
        score_map = self._annotate(images)
        if not self.flip:
            return score_map
        return (score_map + self._annotate(images.flip(-1)).flip(-1)) / 2

    def _annotate(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        tokens = self.backbone(images)
        read = self.backbone.classify if self.has_silent_head else self.backbone.classify_tokens
        logits = read(tokens.patch).float() / self.temperature  # (B, N, C)
        return logits.softmax(dim=-1).mT.unflatten(2, tokens.grid)
