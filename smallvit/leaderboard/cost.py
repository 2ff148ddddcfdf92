"""What a network costs: its size, its operations, its speed and its memory.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.engine.runtime import Runtime
from smallvit.models.architecture import sides
from smallvit.models.measure import frozen, measure
from smallvit.models.tokens import AbstractBackbone

BATCH_SIZES = (1, 256)
VERSION = 2  # of how time is measured
RESTLESS = "rounds differ"  # how the reason begins where the machine was at fault
ROUNDS = 5
ROUND_S = 0.05  # passes are repeated until a round lasts as long: a clock tick is nothing to that
MOST_APART = 0.2  # longest minus shortest of the rounds, over their median
BUDGET_S = 4.0  # of rounds at each batch size, until five in a row agree
MAX_EXPECTED_S = 10.0  # of one batch by the time of one image, which is more than it takes


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a forward pass takes.

    Attributes:
        latency_s: Median of the last rounds, or ``None`` where there is no figure to give.
        spread: Longest minus shortest of those rounds, over their median.
        about_s: That median, also where it is no figure to give.
        reason: Why there is no figure.
        peak_bytes: Memory that it holds at most, where that is counted.
    """

    latency_s: float | None = None
    spread: float | None = None
    about_s: float = 0.0
    reason: str = ""
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs.

    Attributes:
        macs: Multiply-adds of one image.
        timings: Of a forward pass, by its number of images: 1 and 256.
        peak_memory_mib: The weights, 256 images and all that the forward pass holds beside them at
            once, as CUDA's allocator counts it; ``None`` on a CPU, where nothing counts it.
        device: Device that it was measured on.
        precision: Arithmetic that it was measured in.
        threads: Threads of a CPU.
    """

    macs: int
    timings: dict[int, Timing]
    peak_memory_mib: float | None
    device: str
    precision: str
    threads: int


def measure_cost(
    backbone: AbstractBackbone, image_size: int | tuple[int, int], runtime: Runtime
) -> Cost:
    """Count what a network needs and time it from images to logits, on black images.

    Images lie on the device; reading and normalising them is not timed. A time is the median of
    five rounds in a row, after a warm-up. Rounds go on until five in a row differ by 20 % at most;
    where none do in about 4 s, another program keeps the machine busy and there is no figure. Nor
    is there one of a batch of 256 that would take more than 10 s by the time of one image, or that
    does not fit in memory.

    Args:
        backbone: Network with a classifier, on the device of ``runtime``; left as it is.
        image_size: Side, or height and width, in pixels.
        runtime: Device and precision.
    """
    shape = (3, *sides(image_size))
    timings: dict[int, Timing] = {}
    image_s = 0.0
    with frozen(backbone), torch.no_grad():
        for batch_size in BATCH_SIZES:
            if image_s * batch_size > MAX_EXPECTED_S:
                reason = f"would take more than {MAX_EXPECTED_S:g} s"
                timings[batch_size] = Timing(reason=reason)
                continue
            try:
                timings[batch_size] = _time(backbone, (batch_size, *shape), runtime)
                image_s = timings[batch_size].about_s / batch_size
            except torch.OutOfMemoryError:
                timings[batch_size] = Timing(reason="does not fit in memory")
                break
    for batch_size in BATCH_SIZES:  # a larger batch fits even less
        timings.setdefault(batch_size, Timing(reason="does not fit in memory"))
    peak_bytes = timings[BATCH_SIZES[-1]].peak_bytes
    return Cost(
        macs=measure(backbone, image_size).macs,
        timings=timings,
        peak_memory_mib=None if peak_bytes is None else peak_bytes / 2**20,
        device=device_name(runtime),
        precision=runtime.precision,
        threads=torch.get_num_threads(),
    )


def device_name(runtime: Runtime) -> str:
    """Name what a network is timed on: the model of a GPU, else the kind of device."""
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return runtime.device.type


def _time(backbone: AbstractBackbone, shape: tuple[int, int, int, int], runtime: Runtime) -> Timing:
    """Time a forward pass, and on CUDA count the bytes that it holds at most."""
    device = runtime.device
    weights = sum(part.nbytes for part in (*backbone.parameters(), *backbone.buffers()))
    others = 0  # such as a data set on the device
    if device.type == "cuda":
        others = torch.cuda.memory_allocated(device) - weights
        torch.cuda.reset_peak_memory_stats(device)
    images = torch.zeros(shape, device=device)
    _round(backbone, images, runtime, 1)
    once_s = _round(backbone, images, runtime, 1)
    passes = max(1, math.ceil(ROUND_S / max(once_s, 1e-6)))
    rounds_s: list[float] = []
    while len(rounds_s) < ROUNDS or (
        _apart(rounds_s[-ROUNDS:]) > MOST_APART and passes * sum(rounds_s) < BUDGET_S
    ):
        rounds_s.append(_round(backbone, images, runtime, passes) / passes)
    last = rounds_s[-ROUNDS:]
    peak_bytes = None
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device) - others
    apart, middle_s = _apart(last), median(last)
    restless = apart > MOST_APART
    return Timing(
        latency_s=None if restless else middle_s,
        spread=apart,
        about_s=middle_s,
        reason=f"{RESTLESS} by {100 * apart:.0f} %" if restless else "",
        peak_bytes=peak_bytes,
    )


def _apart(rounds_s: Sequence[float]) -> float:
    return (max(rounds_s) - min(rounds_s)) / max(median(rounds_s), 1e-12)


def _round(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"], runtime: Runtime, passes: int
) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        _forward(backbone, images, runtime)
    return time.perf_counter() - start


def _forward(
    backbone: AbstractBackbone, images: Float[Tensor, "B 3 H W"], runtime: Runtime
) -> None:
    with runtime.autocast():
        backbone.logits(backbone(images))
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
