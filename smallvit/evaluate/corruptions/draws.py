"""What a corruption takes and returns, and the random numbers that it draws.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng

Bytes = UInt8[Tensor, "B 3 H W"]
Levels = Float[Tensor, "B 3 H W"]  # from 0 to 255, not yet clipped


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers for some images, a function of (seed, corruption, severity, image, what for).

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
