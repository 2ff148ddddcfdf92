"""One optimizer step, without waiting for the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.objective import AbstractObjective, BatchT
from smallvit.engine.optim import GradClipMode, clip_gradients_
from smallvit.engine.runtime import Runtime


def train_step(
    objective: AbstractObjective[BatchT],
    batch: BatchT,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    grad_clip_norm: float | None,
    grad_clip_mode: GradClipMode = "global",
    runtime: Runtime,
) -> dict[str, Float[Tensor, ""]]:
    """Take one step; a loss or gradient that is not finite leaves the parameters as they were.

    Finiteness is judged on the device: the fused optimizer takes a flag and skips the update, and
    the host learns of it at the next log line.

    Args:
        objective: Stage being trained.
        batch: Batch on the device.
        optimizer: Fused optimizer over ``parameters``, with this step's learning rate set.
        parameters: Trained parameters, for clipping.
        grad_clip_norm: Largest L2 norm of the gradient; ``None`` only measures it.
        grad_clip_mode: Whether that is the norm of all parameters together or of each by itself.
        runtime: Device and precision.

    Returns:
        Scalars on the device: ``train/loss``, ``opt/grad_norm`` (of all parameters together, before
        clipping), ``not_finite`` (0 or 1) and the objective's own metrics.
    """
    optimizer.zero_grad(set_to_none=True)
    with runtime.autocast():
        output = objective(batch)
    output.loss.backward()
    limit = float("inf") if grad_clip_norm is None else grad_clip_norm
    norm = clip_gradients_(parameters, limit, grad_clip_mode)
    loss = output.loss.detach().float()
    not_finite = (~(loss.isfinite() & norm.isfinite())).float()
    optimizer.found_inf = not_finite  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return {
        "train/loss": loss,
        "opt/grad_norm": norm.float(),
        "not_finite": not_finite,
        **{name: value.float() for name, value in output.metrics.items()},
    }
