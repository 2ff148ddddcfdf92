"""Corrupt a batch of images by name and severity.

Shapes in this file:
    B    images
    H W  image in pixels
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.evaluate.corruptions import blur, digital, noise, spatter, weather
from smallvit.evaluate.corruptions.draws import Bytes, Draws, Levels
from smallvit.evaluate.corruptions.parameters import ALL_CORRUPTIONS, Strength, get_strength

# Version of the generated corruptions, for results: raise it when the same call gives other pixels.
PROTOCOL = "smallvit-1"
SMALLEST_SIDE = 8
# Pixels worked on at a time: on the CPU what its caches hold, on a GPU what fills it.
PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}

Corruption = Callable[[Bytes, Strength, Draws], Bytes | Levels]
_FUNCTIONS: dict[str, Corruption] = {
    name: getattr(module, name)
    for module in (blur, digital, noise, spatter, weather)
    for name in ALL_CORRUPTIONS
    if hasattr(module, name)
}


def corrupt(
    images: UInt8[Tensor, "B 3 H W"],
    name: str,
    severity: int,
    *,
    seed: int,
    indices: Int[Tensor, " B"],
) -> UInt8[Tensor, "B 3 H W"]:
    """Corrupt images with the published strength for their size.

    A result depends on the image, the corruption, the severity, the seed and the image's index,
    and on nothing else of the batch.

    Args:
        images: Bytes, on any device.
        name: One of ``CORRUPTIONS`` or ``EXTRA_CORRUPTIONS``.
        severity: 1 to 5.
        seed: Seed of the random corruptions.
        indices: Number of each image in its data set, on the same device.

    Returns:
        Images of the same shape, on the same device, truncated to bytes as the published ones are.

    Raises:
        UnknownNameError: If no corruption has that name.
        ConfigError: If the severity is not 1 to 5, or the images are smaller than 8 pixels.

    Source:
        Hendrycks and Dietterich, 2019, Benchmarking Neural Network Robustness to Common Corruptions
        and Perturbations, https://arxiv.org/abs/1903.12261. ``strengths.yaml`` has the strengths;
        frost is made and not photographed (``frost.py``), and draws are this package's own.
    """
    height, width = images.shape[2:]
    strength = get_strength(name, severity, max(height, width))
    if min(height, width) < SMALLEST_SIDE:
        raise ConfigError(
            f"corruptions need images of {SMALLEST_SIDE} px or more, got {height}x{width}: pack "
            "them larger (data.image_size)"
        )
    assert len(images) == len(indices) > 0
    at_once = max(1, PIXELS_AT_ONCE.get(images.device.type, 2**17) // (height * width))
    parts = list(
        zip(images.contiguous().split(at_once), indices.long().split(at_once), strict=True)
    )
    purpose = f"corruption/{name}/{severity}"

    def change(part: tuple[Tensor, Tensor]) -> Tensor:
        draws = Draws(seed=seed, purpose=purpose, indices=part[1])
        levels = _FUNCTIONS[name](part[0], strength, draws)
        if levels.is_floating_point():
            levels = (levels + blur.ROUNDING).clamp_(0, 255)
        return levels.to(torch.uint8)

    return torch.cat(_map_parts(change, parts)).contiguous()


def _map_parts(
    change: Callable[[tuple[Tensor, Tensor]], Tensor], parts: list[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Work on the parts one after another, on the CPU in as many threads as torch uses.

    Each thread has whole parts to itself. Torch's own threads share every operation and wait for
    each other after it: on a busy machine that takes five times as long.
    """
    num_threads = torch.get_num_threads()
    if parts[0][0].is_cuda or num_threads == 1 or len(parts) == 1:
        return [change(part) for part in parts]
    try:
        pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
        with pool:
            return list(pool.map(change, parts))
    finally:
        torch.set_num_threads(num_threads)  # a thread sets its own number, and that of new threads
