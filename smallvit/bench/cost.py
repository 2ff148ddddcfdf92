"""What a network costs: its size, its operations, its speed and its memory.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import time
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.engine.runtime import Runtime
from smallvit.models.architecture import sides
from smallvit.models.measure import frozen, measure
from smallvit.models.tokens import AbstractBackbone

BATCH_SIZES = (1, 256)
MIN_ROUNDS, MAX_ROUNDS = 3, 100
BUDGET_S = 2.0  # of rounds at each batch size, beyond the least number of them
MAX_EXPECTED_S = 10.0  # of one batch by the time of one image, which is more than it takes


def measure_cost(
    backbone: AbstractBackbone, image_size: int | tuple[int, int], runtime: Runtime
) -> dict[str, float | int | str | None]:
    """Count what a network needs and time it from images to logits, on black images.

    Images lie on the device; reading and normalising them is not timed. A time is the median of at
    least 3 rounds after one of warm-up. What cannot be measured is ``None``: a batch of 256 that
    would take more than 10 s by the time of one image, or that does not fit in memory.

    Args:
        backbone: Network with a classifier, on the device of ``runtime``; left as it is.
        image_size: Side, or height and width, in pixels.
        runtime: Device and precision.

    Returns:
        ``params`` and ``macs`` of one image; for batches b of 1 and 256, ``latency_ms_<b>`` of the
        whole batch and ``images_per_s_<b>``; ``peak_memory_mib``: the weights, 256
        images and all that the forward pass holds beside them at once, as CUDA's allocator counts
        it, and ``None`` on a CPU, where nothing counts it; ``device``, ``precision`` and
        ``threads`` that it was measured with.
    """
    facts = measure(backbone, image_size)
    shape = (3, *sides(image_size))
    cost: dict[str, float | int | str | None] = {"params": facts.parameters, "macs": facts.macs}
    peak_bytes, image_s = None, 0.0
    with frozen(backbone), torch.no_grad():
        for batch_size in BATCH_SIZES:
            latency_s, peak_bytes = None, None
            if image_s * batch_size <= MAX_EXPECTED_S:
                try:
                    latency_s, peak_bytes = _time(backbone, (batch_size, *shape), runtime)
                except torch.OutOfMemoryError:
                    image_s = float("inf")
                else:
                    image_s = latency_s / batch_size
            cost[f"latency_ms_{batch_size}"] = latency_s and 1000 * latency_s
            cost[f"images_per_s_{batch_size}"] = latency_s and batch_size / latency_s
    cuda = runtime.device.type == "cuda"
    return cost | {
        "peak_memory_mib": peak_bytes and peak_bytes / 2**20,
        "device": torch.cuda.get_device_name(runtime.device) if cuda else runtime.device.type,
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
    }


def _time(
    backbone: AbstractBackbone, shape: tuple[int, int, int, int], runtime: Runtime
) -> tuple[float, int | None]:
    """Return the median time of a forward pass, and on CUDA the bytes that it holds at most."""
    device = runtime.device
    weights = sum(part.nbytes for part in (*backbone.parameters(), *backbone.buffers()))
    others = 0  # such as a data set on the device
    if device.type == "cuda":
        others = torch.cuda.memory_allocated(device) - weights
        torch.cuda.reset_peak_memory_stats(device)
    images = torch.zeros(shape, device=device)
    rounds_s: list[float] = []
    _forward(backbone, images, runtime)
    while len(rounds_s) < MIN_ROUNDS or (len(rounds_s) < MAX_ROUNDS and sum(rounds_s) < BUDGET_S):
        start = time.perf_counter()
        _forward(backbone, images, runtime)
        rounds_s.append(time.perf_counter() - start)
    if device.type != "cuda":
        return median(rounds_s), None
    return median(rounds_s), torch.cuda.max_memory_allocated(device) - others


def _forward(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"], runtime: Runtime
) -> None:
    with runtime.autocast():
        backbone.logits(backbone(images))
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
