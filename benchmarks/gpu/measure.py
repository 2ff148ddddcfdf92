"""What is measured of steps on a device: time, operations, waits of the host, busy time, memory.

What only a CUDA device can tell is ``None`` elsewhere.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from stages import Stage

# Calls of the CUDA runtime that make the host wait, and copies that it waits for. The profiler
# itself calls cudaDeviceSynchronize when it ends; a step has no cause to.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
TO_HOST = "Memcpy DtoH"
WARNING = "called a synchronizing CUDA operation"


def wait(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time some work to its end on the device."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def product_flops_per_s(side: int, dtype: torch.dtype, device: torch.device, times: int) -> float:
    """Multiply two square matrices a few times; return operations a second."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = left @ right  # allocates, and chooses a kernel

    def multiply() -> None:
        for _ in range(times):
            torch.matmul(left, right, out=out)

    multiply()
    return times * 2 * side**3 / seconds_of(multiply, device)


def flops_an_image(stage: "Stage") -> float:
    """Count the floating-point operations of one forward and backward pass, an image.

    Those of matrix products and convolutions, a product and its sum being two of them.
    """
    batch = stage.batches(stage.step)
    stage.objective.train()
    with FlopCounterMode(display=False) as counter:
        with stage.runtime.autocast():
            output = stage.objective(batch)
        output.loss.backward()
    stage.objective.zero_grad(set_to_none=True)
    return counter.get_total_flops() / stage.optim.batch_size


def time_steps(stage: "Stage", *, warm: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time steps, views included, after some that warm up; the best of a few rounds.

    Returns:
        ``images_per_s``, ``ms_a_step``, ``warm_up_s``, ``peak_memory_mib`` on a CUDA device, and
        ``micro_batch`` where the memory did not hold the whole batch.
    """
    device = stage.runtime.device
    cuda = device.type == "cuda"
    with stage.compiled():
        warm_up_s = seconds_of(lambda: stage.take_steps(warm), device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        best = min(seconds_of(lambda: stage.take_steps(steps), device) for _ in range(rounds))
    return {
        "images_per_s": steps * stage.optim.batch_size / best,
        "ms_a_step": 1e3 * best / steps,
        "warm_up_s": warm_up_s,
        "peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20 if cuda else None,
        "micro_batch": stage.state.result.micro_batch,
    }


def count_waits(stage: "Stage", *, warm: int, steps: int) -> dict[str, Any]:
    """Count how often the host waits for the device in steps between two log lines.

    Returns:
        ``by_torch``: waits that torch warns of, by place in the code; ``by_profiler``: calls that
        wait and copies to the host, by name. Both are ``None`` without a CUDA device.
    """
    with stage.compiled():
        stage.take_steps(warm)
        if stage.runtime.device.type != "cuda":
            return {"steps": steps, "by_torch": None, "by_profiler": None}
        wait(stage.runtime.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                stage.take_steps(steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            stage.take_steps(steps)
    places = Counter(f"{w.filename}:{w.lineno}" for w in caught if WARNING in str(w.message))
    calls = Counter(
        event.name
        for event in profiler.events() or ()
        if event.name in WAITS or event.name.startswith(TO_HOST)
    )
    return {"steps": steps, "by_torch": dict(places), "by_profiler": dict(calls)}


def busy_share(stage: "Stage", *, warm: int, steps: int) -> dict[str, Any]:
    """Compare the time in which a kernel runs with the wall time of the same number of steps.

    The wall time is taken without the profiler, which slows the host down but not the kernels.

    Returns:
        ``kernel_ms`` and ``wall_ms`` of a step, their quotient ``busy`` and the ten kernels that
        take longest, in ms a step.
    """
    device = stage.runtime.device
    with stage.compiled():
        stage.take_steps(warm)
        wall = seconds_of(lambda: stage.take_steps(steps), device) / steps
        if device.type != "cuda":
            return {"wall_ms": 1e3 * wall, "kernel_ms": None, "busy": None, "kernels": None}
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            stage.take_steps(steps)
            wait(device)
    # Annotations, such as torch.compile's, span kernels and the gaps between them.
    kernels = [
        event
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    spans = [(event.time_range.start, event.time_range.end) for event in kernels]
    kernel_ms = union_length(spans) / 1e3 / steps
    spent: Counter[str] = Counter()
    for event in kernels:
        spent[event.name[:80]] += event.time_range.elapsed_us() / 1e3 / steps
    return {
        "wall_ms": 1e3 * wall,
        "kernel_ms": kernel_ms,
        "busy": kernel_ms / (1e3 * wall),
        "kernels": dict(spent.most_common(10)),
    }


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length that some spans cover together, each part counted once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
