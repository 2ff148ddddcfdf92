"""Taking a step again: with fewer images at once, or with a smaller scale of a float16 loss."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from smallvit.core.errors import DivergedError, OutOfMemoryError
from smallvit.engine.plan import refuse_cut
from smallvit.engine.state import TrainState
from smallvit.engine.step import LossOverflowError
from smallvit.parallel import processes
from smallvit.parallel.process_group import is_lost_connection

logger = logging.getLogger("smallvit")
LEAST_SCALE = 1.0  # of the loss in float16: an overflow below it is the run's own


@contextmanager
def retrying(state: TrainState, step: int) -> Iterator[None]:
    """Undo a step that failed inside and let the next try need less; the caller tries again.

    Args:
        state: About to take the step.
        step: Steps done before.

    Raises:
        ConfigError: If the batch must stay whole and does not fit.
        OutOfMemoryError: If there is too little memory for two images at once.
        DivergedError: If float16 overflows at any scale.
        RuntimeError: If another process ended; nothing of the step is left.
    """
    try:
        yield
    except LossOverflowError as overflow:
        state.undo()
        state.result.skipped += 1
        if overflow.scale < LEAST_SCALE:
            metrics = {name: float(value) for name, value in overflow.metrics.items()}
            raise DivergedError(step, metrics) from None
    except Exception as error:
        if is_lost_connection(error):
            state.undo()
        if not is_out_of_memory(error):
            raise
        state.undo()
        traceback.clear_frames(error.__traceback__)  # which hold on to the step's memory
        _halve(state, error)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device or the host had too little memory."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def use_micro_batches(state: TrainState, size: int, why: str) -> None:
    """Take fewer images at once from here on, and say so.

    Args:
        state: About to take its next step.
        size: Images at once.
        why: What was found and what is done.
    """
    state.result.micro_batch = size
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in state.objective.modules())
    logger.warning(
        "%s; the step stays the same but for rounding%s",
        why,
        " and batch norms" if has_batch_norm else "",
    )


def _halve(state: TrainState, failure: Exception) -> None:
    own_size = state.plan.optim.batch_size if state.rows is None else len(state.rows.index)
    if processes.count() > 1:
        raise OutOfMemoryError(
            f"out of memory in process {processes.number()} of {processes.count()}: set "
            "--micro-batch (runtime.micro_batch), which leaves the step as it is; "
            f"{own_size} images a process are too many"
        ) from failure
    size = min(state.result.micro_batch or own_size, own_size)
    refuse_cut(
        state.objective,
        state.plan,
        f"{size} are too many for the memory: lower --batch-size, or use --grad-checkpointing",
    )
    if size <= 2:
        raise OutOfMemoryError(
            "out of memory with 2 images at once: use a smaller model or image size, or "
            "--grad-checkpointing"
        ) from failure
    half = max(2, size // 2)
    use_micro_batches(
        state,
        half,
        f"out of memory with {size} images at once: the step is repeated with micro-batches of "
        f"{half}",
    )
    if state.plan.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
