"""One token interface for every architecture.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    D    embed dim
    C    classes
    H W  image in pixels
    h w  token grid
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Final tokens of a batch of images.

    Attributes:
        patch: Normalised patch tokens.
        cls: Class token, or ``None`` where an architecture has none.
        grid: Token grid (h, w).
    """

    patch: Float[Tensor, "B N D"]
    cls: Float[Tensor, "B D"] | None
    grid: tuple[int, int]

    @property
    def pooled(self) -> Float[Tensor, "B D"]:
        """One vector an image: the class token, else the mean of the patch tokens."""
        return self.patch.mean(dim=1) if self.cls is None else self.cls


ModelT = TypeVar("ModelT", bound=nn.Module)


class AbstractBackbone(nn.Module, ABC, Generic[ModelT]):
    """A timm model seen as tokens.

    Attributes:
        model: The plain timm model that is trained and exported; its classifier reads ``pooled``.
        embed_dim: D.
    """

    model: ModelT
    embed_dim: int

    @abstractmethod
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches, before any position or class token is added."""

    @abstractmethod
    def encode(self, patches: Float[Tensor, "B h w D"]) -> Tokens:
        """Run embedded patches through the network."""

    @abstractmethod
    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier to pooled features or to each token."""

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return the tokens of images of any size that the architecture can divide."""
        return self.encode(self.embed(images))

    def grid(self, image_size: int) -> tuple[int, int]:
        """Return the token grid of square images."""
        return self(next(self.parameters()).new_zeros(1, 3, image_size, image_size)).grid
