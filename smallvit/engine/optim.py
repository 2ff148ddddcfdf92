"""Optimizer and schedule: AdamW with warm-up, cosine decay and a moving weight decay."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.core.schedule import cosine

# Learned positions and tokens are not weights of a product; decay would only shrink them.
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")
GradClipMode = Literal["global", "parameter"]
Decay = Literal["products", "matrices", "all"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        lr: Peak learning rate, at the batch size given here; it is not rescaled.
        batch_size: Images of one optimizer step.
        weight_decay: Decoupled weight decay.
        decay: Which parameters have it: ``products`` are the weights of matrix products and
            convolutions, so neither biases and norms nor positions and class tokens; ``matrices``
            are all of two or more axes but biases; ``all`` are all.
        weight_decay_end: Weight decay at the end of training, reached along a cosine; null keeps
            it constant.
        betas: Decay of AdamW's two moments.
        grad_clip_norm: Largest L2 norm of the gradient; null leaves it as it is.
        grad_clip_mode: Whether the norm is that of all parameters together or of each by itself.
    """

    lr: Annotated[float, Range(gt=0)] = 1.0e-3
    batch_size: Annotated[int, Range(ge=1, le=1 << 20)] = 256
    weight_decay: Annotated[float, Range(ge=0)] = 0.05
    weight_decay_end: Annotated[float | None, Range(ge=0)] = None
    decay: Decay = "products"
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    grad_clip_norm: Annotated[float | None, Range(gt=0)] = 3.0
    grad_clip_mode: GradClipMode = "global"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate moves.

    Attributes:
        epochs: Passes over the training images, that is samples seen over images; a fraction is
            allowed.
        warmup_epochs: Passes of linear warm-up, at most half of the run.
        min_lr: Learning rate at the end of the cosine.
        eval_epochs: Passes between evaluations on validation; the last step is always evaluated.
    """

    epochs: Annotated[float, Range(gt=0, le=1e6)] = 100.0
    warmup_epochs: Annotated[float, Range(ge=0)] = 5.0
    min_lr: Annotated[float, Range(ge=0)] = 1.0e-6
    eval_epochs: Annotated[float, Range(ge=1e-3)] = 1.0


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW over the trained parameters; decayed groups carry ``"decayed": True``."""
    names = [name for name, _ in model.named_parameters()]
    groups = param_groups_weight_decay(
        model,
        weight_decay=1.0,
        weight_decay_exclude_1d=config.decay != "all",
        no_weight_decay_list=(
            [name for name in names if name.endswith(UNDECAYED)]
            if config.decay == "products"
            else []
        ),
    )
    groups = [
        {
            **group,
            "decayed": group["weight_decay"] > 0,
            "weight_decay": group["weight_decay"] * config.weight_decay,
        }
        for group in groups
    ]
    # Fused: one call for all parameters, and a non-finite gradient can be skipped on the device.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[nn.Parameter], limit: float, mode: GradClipMode
) -> Float[Tensor, ""]:
    """Scale gradients down to a norm, in place and without waiting for the device.

    Args:
        parameters: Those without a gradient are passed over.
        limit: Largest L2 norm.
        mode: Whether all gradients together have at most that norm, or each by itself.

    Returns:
        The L2 norm of all gradients together, before they are scaled.

    Source:
        By parameter: hananshafi/vits-for-small-scale-datasets@43a7493, utils_ssl.py:63-72.
    """
    if mode == "global":
        return nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(
        torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    )
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
        gradients, list(factors.unbind())
    )
    return torch.linalg.vector_norm(norms)


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> float:
    """Return the steps of the warm-up; a run shorter than twice that warms up for its half."""
    return min(schedule.warmup_epochs / schedule.epochs, 0.5) * total_steps


def set_schedule(
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    *,
    step: int,
    total_steps: int,
) -> float:
    """Set learning rate and weight decay of one step and return the learning rate."""
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        lr = optim.lr * (step + 1) / (warmup + 1)
    else:
        lr = cosine(optim.lr, schedule.min_lr, (step - warmup) / max(total_steps - warmup, 1))
    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    decay = cosine(optim.weight_decay, end, step / total_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decayed"]:
            group["weight_decay"] = decay
    return lr


def check_schedule(optim: OptimConfig, schedule: ScheduleConfig) -> None:
    """Refuse a schedule that would end above its peak.

    Raises:
        ConfigError: With both values.
    """
    if schedule.min_lr > optim.lr:
        raise ConfigError(
            f"schedule.min_lr ({schedule.min_lr}) is above optim.lr ({optim.lr}): lower it"
        )
