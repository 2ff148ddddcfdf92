"""The random numbers of a corruption, a function of (seed, corruption, severity, image).

Shapes in this file:
    B    images
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core import rng


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Numbers for some images; what they are for tells one set from another.

    Attributes:
        seed: Seed of the corruption.
        purpose: Corruption and severity.
        indices: Number of each image in its data set.
    """

    seed: int
    purpose: str
    indices: Int[Tensor, " B"]

    def uniform(self, what: str, *shape: int) -> Float[Tensor, "B ..."]:
        """Draw from [0, 1)."""
        numbers = rng.uniform(
            self.seed,
            f"{self.purpose}/{what}",
            torch.zeros_like(self.indices),
            self.indices,
            math.prod(shape),
        )
        return numbers.reshape(-1, *shape)

    def normal(self, what: str, *shape: int) -> Float[Tensor, "B ..."]:
        """Draw from the standard normal distribution (Box and Muller; none is beyond 5.8)."""
        size = math.prod(shape)
        first, second = self.uniform(what, 2, (size + 1) // 2).unbind(1)
        radius = (1 - first).log_().mul_(-2).sqrt_()
        angle = second.mul_(2 * math.pi)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :size].reshape(-1, *shape)
