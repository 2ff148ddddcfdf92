"""How long a run will take and how much memory, measured on some images of its next step."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from smallvit.core import memory, rng
from smallvit.core.console import format_duration
from smallvit.core.errors import OutOfMemoryError
from smallvit.core.memory import format_bytes
from smallvit.engine.memory import is_out_of_memory, use_micro_batches
from smallvit.engine.plan import FitPlan, refuse_cut
from smallvit.engine.state import TrainState
from smallvit.parallel import processes
from smallvit.parallel.rows import Rows, mirrored_part, seeing

logger = logging.getLogger("smallvit")
FEWEST = 4  # images of the first pass, which warms up
LONG_PASS_S = 1.0  # after a pass as long as that no larger one is tried
WORTH_SAYING_S = 10.0  # of a run
ROOM = 0.8  # part of the memory that a new run plans with: other programs take some meanwhile
RETURNED_BYTES = 128 << 10  # of a buffer that is given back at once while memory is measured
MOMENTS = 2  # numbers that an optimizer keeps a weight


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is expected to take.

    Attributes:
        steps: Steps that are left.
        evaluations: Evaluations that are left.
        step_s: Seconds of a step.
        most_bytes: Most memory of the process, with as many images at once as fit; ``None`` where
            the system does not say.
        evaluation_s: Seconds of an evaluation, where one was timed.
        micro_batch: Most images at once that fit; ``None`` is all of a step's.
    """

    steps: int
    evaluations: int
    step_s: float
    most_bytes: int | None = None
    evaluation_s: float | None = None
    micro_batch: int | None = None

    @property
    def seconds(self) -> float:
        """All that is known of the time."""
        return self.steps * self.step_s + self.evaluations * (self.evaluation_s or 0.0)

    def __str__(self) -> str:
        """Say it in a line."""
        line = (
            f"about {format_duration(self.seconds)} for {_count(self.steps, 'step')} of "
            f"{_short(self.step_s)}"
        )
        if self.evaluations:
            evaluations = _count(self.evaluations, "evaluation")
            timed = self.evaluation_s is not None
            line += f" and {evaluations}" if timed else f", {evaluations} on top"
        if self.most_bytes is not None:
            line += f"; {format_bytes(self.most_bytes)} of memory"
        return line

    def say(self, title: str) -> None:
        """Say how long a run will take, if it is long enough to be worth saying."""
        if self.seconds >= WORTH_SAYING_S:
            logger.info("%s: %s", title, self)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One forward and backward pass.

    Attributes:
        images: How many at once.
        seconds: What it took.
        before: Memory of the process before it.
        peak: The most meanwhile.
    """

    images: int
    seconds: float
    before: int | None
    peak: int | None

    @property
    def own_bytes(self) -> int:
        """Return the memory that it took."""
        return 0 if self.peak is None or self.before is None else max(0, self.peak - self.before)


def can_foresee(device: torch.device) -> bool:
    """Tell whether a step can be measured before it is taken: by one process, on a CPU."""
    return device.type == "cpu" and processes.count() == 1


def foresee(
    state: TrainState, batches: Callable[[int], Any], *, evaluations: int
) -> Forecast | None:
    """Measure what the next step will take, and let it have no more images at once than fit.

    The step's batch is made, and some of its images go through the network and back: more and more,
    until a pass is long or has them all. Nothing of that is left in weights, buffers, gradients or
    generators, so that the run is the same as without.

    Args:
        state: About to take its next step, of this process alone on a CPU.
        batches: Returns the batch of a step.
        evaluations: How many are to come.

    Returns:
        ``None`` where nothing can be measured before the first step: on a CUDA device, whose
        networks are compiled for one size, in several processes, and where the memory ran out.

    Raises:
        ConfigError: If a batch that must stay whole does not fit.
        OutOfMemoryError: If not even two images at once do.
    """
    plan, result = state.plan, state.result
    if not can_foresee(plan.runtime.device):
        return None
    steps = plan.total_steps - result.step
    if not steps:
        return None
    try:
        return _measure(state, batches, steps, evaluations)
    except Exception as error:
        if is_out_of_memory(error):
            return None  # the steps find what fits
        raise


def _measure(
    state: TrainState, batches: Callable[[int], Any], steps: int, evaluations: int
) -> Forecast:
    plan, result = state.plan, state.result
    with torch.random.fork_rng(devices=[]), _left_alone(state):
        peak_is_known = memory.start_peak()
        began = time.monotonic()
        batch = batches(result.step)
        # Some make the batches of a few steps together.
        batch_s = (time.monotonic() - began) / getattr(batches, "block_steps", 1)
        made_peak = memory.peak_bytes() if peak_is_known else None
        whole = min(len(batch), result.micro_batch or len(batch))
        size = min(FEWEST, whole)
        passes = [_try(state, batch, size)]  # which is slower than those to come
        while steps * (batch_s + _step_s(passes[-1], len(batch))) >= WORTH_SAYING_S:
            passes.append(_try(state, batch, size))
            long = passes[-1].seconds > LONG_PASS_S and len(passes) > 2
            if size == whole or long or _is_near_full(passes[-1]):
                break
            size = min(2 * size, whole)
        kept_bytes = passes[-1].own_bytes
        memory.keep_freed_memory(RETURNED_BYTES)
        try:
            exact = [_try(state, batch, max(1, passes[-1].images // n)) for n in (2, 1)]
        finally:
            memory.keep_freed_memory()
    most = _plan_memory(state, exact, kept_bytes, whole, made_peak)
    forecast = Forecast(
        steps=steps,
        evaluations=evaluations,
        step_s=batch_s + _step_s(passes[-1], len(batch)),
        most_bytes=most,
        micro_batch=result.micro_batch,
    )
    forecast.say(plan.title)
    return forecast


def say_forecast(plan: FitPlan, step_s: float, steps: int, evaluations: int) -> None:
    """Say how long a run will take by its first steps, where that was not known before them.

    Args:
        plan: The run; of a CUDA device the most memory that its tensors took is said.
        step_s: Seconds of a step.
        steps: Steps done.
        evaluations: Evaluations to come.
    """
    device = plan.runtime.device
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    left = plan.total_steps - steps
    Forecast(steps=left, evaluations=evaluations, step_s=step_s, most_bytes=most).say(plan.title)


@contextmanager
def _left_alone(state: TrainState) -> Iterator[None]:
    """Undo what forward and backward passes inside change."""
    # A method may freeze some for a while; those are trained all the same, later.
    trained = [(parameter, parameter.requires_grad) for parameter in state.parameters]
    state.begin_step(state.result.step)
    try:
        yield
    finally:
        state.undo()
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def _try(state: TrainState, batch: Any, size: int) -> _Pass:
    """Take some images of a batch through the network and back."""
    parts = min(max(1, round(len(batch) / size)), (len(batch) + 1) // 2)
    index = torch.tensor(mirrored_part(len(batch), 0, parts))
    rows = None if parts == 1 else Rows(index=index, total=len(batch))
    state.optimizer.zero_grad(set_to_none=True)
    memory.start_peak()
    before, began = memory.resident_bytes(), time.monotonic()
    torch.manual_seed(rng.step_seed(state.plan.seed, state.result.step))
    with seeing(rows):
        with state.plan.runtime.autocast():
            output = state.objective(batch if rows is None else batch.take(index))
        output.loss.backward()
    seconds = time.monotonic() - began
    return _Pass(images=len(index), seconds=seconds, before=before, peak=memory.peak_bytes())


def _step_s(last: _Pass, images: int) -> float:
    return last.seconds * images / last.images


def _is_near_full(last: _Pass) -> bool:
    """Tell whether twice as many images might be too many to try."""
    free = memory.free_bytes()
    return free is not None and 2 * last.own_bytes > free / 2


def _plan_memory(
    state: TrainState, passes: list[_Pass], kept_bytes: int, whole: int, made_peak: int | None
) -> int | None:
    """Choose how many images go through the network at once; return the most memory then.

    Args:
        state: About to take its step.
        passes: Of few and of more images, with freed memory given back at once.
        kept_bytes: What the latter took with freed memory kept, as in state.
        whole: Most images at once.
        made_peak: Most memory of the process while the batch was made.
    """
    free, resident = memory.free_bytes(), memory.resident_bytes()
    less, last = passes
    if free is None or resident is None or made_peak is None or not last.own_bytes:
        return None
    assert last.before is not None
    base = last.before
    image_bytes = last.own_bytes / last.images
    if less.images < last.images:
        added = max(0, last.own_bytes - less.own_bytes) / (last.images - less.images)
        image_bytes = min(added, image_bytes)
    fixed = last.own_bytes - image_bytes * last.images
    kept = max(0, kept_bytes - last.own_bytes) / last.images
    weights = sum(p.nbytes for p in state.parameters)
    moments = MOMENTS * weights if not state.optimizer.state else 0

    def needed(images: int) -> int:
        used = base + fixed + image_bytes * images + min(kept * images, memory.MOST_KEPT_BYTES)
        return int(max(made_peak, used) + moments)

    there = free + resident
    # A run that goes on stays the same to the last bit, as long as it can.
    if needed(whole) <= (1.0 if state.result.step else ROOM) * there:
        return needed(whole)
    fits = whole
    while fits > 2 and needed(fits) > ROOM * there:
        fits = -(-fits // 2)
    found = (
        f"{whole} images at once need about {format_bytes(needed(whole))} of memory, and there are "
        f"{format_bytes(there)}"
    )
    if needed(fits) > there:
        raise OutOfMemoryError(
            f"{state.plan.title}: {found}; 2 still need {format_bytes(needed(2))}: use a smaller "
            "model or image size, or --grad-checkpointing"
        )
    if state.objective.compares_images:
        if needed(whole) <= there:
            return needed(whole)
        why = f"{found}: --batch-size {fits} would fit, or use --grad-checkpointing"
        refuse_cut(state.objective, state.plan, why)
    why = f"{state.plan.title}: {found}: as with --micro-batch {fits}, {fits} go at once"
    use_micro_batches(state, fits, why)
    return needed(fits)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _short(time_s: float) -> str:
    """Write the time of a step: ``0.04 s``, ``12 s``, ``1 min 40 s``."""
    if time_s < 9.95:
        digits = max(1, 1 - math.floor(math.log10(max(time_s, 1e-3))))
        return f"{time_s:.{digits}f} s"
    return format_duration(time_s)
