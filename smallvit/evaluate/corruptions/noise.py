"""Noise: Gaussian, shot, impulse and speckle.

Each function takes bytes, the published strength and the draws, and returns levels from 0 to 255,
not yet clipped.

Shapes in this file:
    B    images
    H W  image in pixels
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.special import pdtr
from torch import Tensor

from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.parameters import Strength


def gaussian_noise(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Add normal noise to each channel; the strength is its standard deviation, of 1."""
    (scale,) = strength
    return images + (255 * scale) * draws.normal("noise", *images.shape[1:])


def speckle_noise(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Add normal noise in proportion to the value, of that standard deviation."""
    (scale,) = strength
    return images * (1 + scale * draws.normal("noise", *images.shape[1:]))


def shot_noise(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Count photons: a Poisson number whose mean is the value times the strength."""
    (photons,) = strength
    counts = poisson(images, draws.uniform("counts", *images.shape[1:]), int(photons))
    return counts.double() * (255 / photons)


def poisson(
    images: UInt8[Tensor, "B 3 H W"], uniform: Float[Tensor, "B 3 H W"], photons: int
) -> Float[Tensor, "B 3 H W"]:
    """Turn uniform numbers into counts by the inverse distribution of each of the 256 levels.

    Args:
        images: Levels; white expects ``photons``.
        uniform: In [0, 1).
        photons: Whole number; counts above it are drawn as it, since they are as white.
    """
    keys = _poisson_keys(photons, images.device)
    found = torch.searchsorted(keys, images.double().add_(uniform), right=True)
    return (found - images.long() * photons).float()


@lru_cache(maxsize=16)
def _poisson_keys(photons: int, device: torch.device) -> Float[Tensor, " keys"]:
    """Return level + P(count <= k) for k below ``photons``, level by level: one ascending row."""
    levels = np.arange(256)[:, None]
    keys = levels + pdtr(np.arange(photons), levels / 255 * photons)
    return torch.from_numpy(keys.flatten()).to(device)


def impulse_noise(images: Bytes, strength: Strength, draws: Draws) -> Levels:
    """Set that part of the values to black or white, half of them each, channel by channel."""
    (amount,) = strength
    uniform = draws.uniform("noise", *images.shape[1:])
    levels = images.float().masked_fill_(uniform < amount, 255)
    return levels.masked_fill_(uniform < amount / 2, 0)
