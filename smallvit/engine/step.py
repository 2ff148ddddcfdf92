"""One optimizer step, without waiting for the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.objective import AbstractObjective, BatchT
from smallvit.engine.config import GradClipMode
from smallvit.engine.optim import clip_gradients_
from smallvit.engine.runtime import Runtime
from smallvit.parallel import processes
from smallvit.parallel.rows import Rows, cut, seeing


class LossOverflowError(ArithmeticError):
    """A float16 gradient that overflowed: nothing was updated but the scale of the loss.

    Args:
        scale: The smaller scale of the next try.
        metrics: Metrics of the step.
    """

    def __init__(self, scale: float, metrics: dict[str, Float[Tensor, ""]]) -> None:
        super().__init__(f"float16 overflowed; the next scale of the loss is {scale}")
        self.scale = scale
        self.metrics = metrics


def train_step(
    objective: AbstractObjective[BatchT],
    batch: BatchT,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    grad_clip_norm: float | None,
    grad_clip_mode: GradClipMode = "global",
    runtime: Runtime,
    rows: Rows | None = None,
    micro_batch: int | None = None,
    seed: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Take one step; a loss or gradient that is not finite leaves the parameters as they were.

    Finiteness is judged on the device: the fused optimizer takes a flag and skips the update, and
    the host learns of it at the next log line.

    Args:
        objective: Stage being trained.
        batch: Batch on the device: the rows of this process.
        optimizer: Fused optimizer over ``parameters``, with this step's learning rate set.
        parameters: Trained parameters, for clipping.
        grad_clip_norm: Largest L2 norm of the gradient; ``None`` only measures it.
        grad_clip_mode: Whether that is the norm of all parameters together or of each by itself.
        runtime: Device and precision.
        rows: Which rows of the step's batch these are; ``None`` is all.
        micro_batch: Most rows of one forward and backward pass; ``None`` is all.
        seed: Of torch's generators in each of those passes: they draw for the whole batch alike.
            ``None`` leaves the generators alone.
        scaler: Scale of the loss in float16.

    Returns:
        Scalars on the device, of the rows of this process: ``train/loss``, ``opt/grad_norm`` (of
        all parameters together, before clipping; of all processes), ``not_finite`` (0 or 1) and the
        objective's own metrics. Losses and metrics of a part of the batch weigh as much as its
        share of the rows, so that those of all processes add up.

    Raises:
        LossOverflowError: If float16 overflowed; the step is to be taken again.
    """
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for index, part in cut(len(batch), micro_batch, rows, runtime.device):
        if seed is not None:
            torch.manual_seed(seed)
        share = 1.0 if part is None else part.share
        with seeing(part):
            with runtime.autocast():
                output = objective(batch if index is None else batch.take(index))
            loss = output.loss if share == 1 else output.loss * share
            # Inside too: checkpointed blocks are computed again here.
            (loss if scaler is None else scaler.scale(loss)).backward()
        values = {"train/loss": output.loss.detach(), **output.metrics}
        for name, value in values.items():
            weighed = value.float() if share == 1 else value.float() * share
            totals[name] = totals[name] + weighed if name in totals else weighed
    processes.add_up_gradients_(parameters)
    objective.before_update()
    if scaler is not None:
        scaler.unscale_(optimizer)
    limit = float("inf") if grad_clip_norm is None else grad_clip_norm
    norm = clip_gradients_(parameters, limit, grad_clip_mode)
    finite = norm.isfinite()
    if processes.count() == 1:  # in several, only the norm is that of all
        finite = finite & totals["train/loss"].isfinite()
    not_finite = (~finite).float()
    metrics = {**totals, "opt/grad_norm": norm.float(), "not_finite": not_finite}
    if scaler is None:
        optimizer.found_inf = not_finite  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        return metrics
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() < scale:
        raise LossOverflowError(scaler.get_scale(), metrics)
    return metrics
