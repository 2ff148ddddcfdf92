"""What a network costs: its size, its operations, its speed and its memory.

Shapes in this file:
    B    images
    H W  image in pixels
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.core.run_folder import machine
from smallvit.engine.runtime import Runtime
from smallvit.leaderboard.kept import KeptFile
from smallvit.leaderboard.part import FigureKind, Measured, OpenedRun, Part
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.models.architecture import sides
from smallvit.models.measure import frozen, measure
from smallvit.models.tokens import AbstractBackbone

VERSION = 2  # of how time is measured
RESTLESS = "rounds differ"  # how the reason begins where the machine was at fault
ROUNDS = 5
ROUND_S = 0.05  # passes are repeated until a round lasts as long: a clock tick is nothing to that
MOST_APART = 0.2  # longest minus shortest of the rounds, over their median
BUDGET_S = 4.0  # of rounds at each batch size, until five in a row agree
MAX_EXPECTED_S = 10.0  # of one batch by the time of one image, which is more than it takes
# Figures of each batch size, from small to large, and the spread of the rounds that they are the
# median of.
TIMES = {1: ("cost/latency_ms",), 256: ("cost/latency_ms_256", "cost/images_per_s")}
ROUNDS_OF = {name: f"cost/spread/{size}" for size, names in TIMES.items() for name in names}
logger = logging.getLogger("smallvit")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a forward pass takes.

    Attributes:
        latency_s: Median of the last rounds, or ``None`` where there is no figure to give.
        spread: Longest minus shortest of those rounds, over their median.
        about_s: That median, also where it is no figure to give.
        reason: Why there is no figure.
        peak_bytes: The weights, the images and all that the pass holds beside them at once, as
            CUDA's allocator counts it; ``None`` on a CPU, where nothing counts it.
    """

    latency_s: float | None = None
    spread: float | None = None
    about_s: float = 0.0
    reason: str = ""
    peak_bytes: int | None = None


def time_passes(
    backbone: AbstractBackbone, image_size: int | tuple[int, int], runtime: Runtime
) -> dict[int, Timing]:
    """Time a network from images to logits, on 1 and on 256 black images.

    Images lie on the device; reading and normalizing them is not timed. A time is the median of
    five rounds in a row, after a warm-up. Rounds go on until five in a row differ by 20 % at most;
    where none do in about 4 s, another program keeps the machine busy and there is no figure. Nor
    is there one of a batch of 256 that would take more than 10 s by the time of one image, or that
    does not fit in memory.

    Args:
        backbone: Network with a classifier, on the device of ``runtime``; left as it is.
        image_size: Side, or height and width, in pixels.
        runtime: Device and precision.

    Returns:
        How long a forward pass takes, by its number of images.
    """
    shape = (3, *sides(image_size))
    timings = dict.fromkeys(TIMES, Timing(reason="does not fit in memory"))
    image_s = 0.0
    # Where a batch does not fit, the larger ones do not either.
    with frozen(backbone), torch.no_grad(), suppress(torch.OutOfMemoryError):
        for batch_size in TIMES:
            if image_s * batch_size > MAX_EXPECTED_S:
                reason = f"would take more than {MAX_EXPECTED_S:g} s"
                timings[batch_size] = Timing(reason=reason)
            else:
                timings[batch_size] = _time(backbone, (batch_size, *shape), runtime)
                image_s = timings[batch_size].about_s / batch_size
    return timings


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
        with runtime.autocast():
            backbone.logits(backbone(images))
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - start


def measure_group_cost(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Return the cost of networks of one architecture: measured once, however many they are."""
    key = {
        "architecture": _architecture(group[0]),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "version": VERSION,
        "machine": machine(),
        "device_name": device_name(runtime),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    files = [KeptFile(each.run.path, "cost", key) for each in group]
    kept = [file.read() for file in files]
    measured = next((each for each in kept if each is not None), None)
    if measured is None:
        logger.info("timing %s", group[0].run.result["model"])
        measured = _measure(group[0], runtime)
    # A machine that was busy may be quiet the next time.
    if not any(reason.startswith(RESTLESS) for reason in measured["missing"].values()):
        for file, there in zip(files, kept, strict=True):
            if there != measured:
                file.write(measured)
    return [[measured] for _ in group]


def _measure(opened: OpenedRun, runtime: Runtime) -> Measured:
    backbone, image_size = opened.backbone, opened.dataset.image_size
    timings = time_passes(backbone, image_size, runtime)
    figures: dict[str, float] = {"cost/macs": measure(backbone, image_size).macs}
    missing: dict[str, str] = {}
    for batch_size, names in TIMES.items():
        timing = timings[batch_size]
        if timing.peak_bytes is not None and batch_size == max(TIMES):
            figures["cost/peak_memory"] = timing.peak_bytes / 2**20
        if timing.latency_s is None or timing.spread is None:
            missing |= dict.fromkeys(names, timing.reason)
            continue
        figures[f"cost/spread/{batch_size}"] = timing.spread
        for name in names:
            speed = name == "cost/images_per_s"
            figures[name] = batch_size / timing.latency_s if speed else 1000 * timing.latency_s
    protocol = {
        "Cost": f"Forward pass on {machine()}, {device_name(runtime)}, {runtime.precision}, "
        f"{torch.get_num_threads()} threads; measured once for all rows of one network, as the "
        f"median of {ROUNDS} rounds in a row after a warm-up, +- half of what the longest is above "
        "the shortest. A dash where rounds differ by more than 20 %: something else was at work."
    }
    return {"figures": figures, "protocol": protocol, "missing": missing}


def _architecture(opened: OpenedRun) -> str:
    """Hash what the cost of a network depends on: its arguments and the size of its images."""
    config = json.loads((opened.run.path / "export" / "config.json").read_text())
    named = {key: config.get(key) for key in ("architecture", "num_classes", "model_args")}
    text = json.dumps([named, opened.dataset.image_size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


COST = Part(
    measure=measure_group_cost,
    tasks=lambda config: ("cost",) if config.cost else (),
    together=_architecture,
    figures={
        "cost/macs": FigureKind("Cost", "multiply-adds", "count", "lower"),
        "cost/images_per_s": FigureKind("Cost", "images/s, batch 256", "images/s", "higher"),
        "cost/latency_ms": FigureKind("Cost", "latency, batch 1", "ms", "lower"),
        "cost/latency_ms_256": FigureKind("Cost", "latency, batch 256", "ms", "lower"),
        "cost/spread/": FigureKind("Cost", "spread of rounds, batch {}", column=False),
        "cost/peak_memory": FigureKind("Cost", "peak memory, batch 256", "MiB", "lower"),
    },
)
