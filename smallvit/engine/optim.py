"""Optimizer and schedule: AdamW with warm-up, cosine decay and a moving weight decay."""

from dataclasses import dataclass
from typing import Annotated

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.core.schedule import cosine

# Learned positions and prefix tokens are not weights of a product; decay would only shrink them.
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        lr: Peak learning rate, at the batch size given here; it is not rescaled.
        batch_size: Images of one optimizer step.
        weight_decay: Decoupled weight decay of matrices; biases, norms and positions have none.
        weight_decay_end: Weight decay at the end of training, reached along a cosine; null keeps
            it constant.
        betas: Decay of AdamW's two moments.
        grad_clip_norm: Largest global L2 norm of the gradient; null leaves it as it is.
    """

    lr: Annotated[float, Range(gt=0)] = 1.0e-3
    batch_size: Annotated[int, Range(ge=1, le=1 << 20)] = 256
    weight_decay: Annotated[float, Range(ge=0)] = 0.05
    weight_decay_end: Annotated[float | None, Range(ge=0)] = None
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    grad_clip_norm: Annotated[float | None, Range(gt=0)] = 3.0


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
    exempt = [name for name, _ in model.named_parameters() if name.endswith(UNDECAYED)]
    groups = param_groups_weight_decay(model, weight_decay=1.0, no_weight_decay_list=exempt)
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


def set_schedule(
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    *,
    step: int,
    total_steps: int,
) -> float:
    """Set learning rate and weight decay of one step and return the learning rate.

    A run shorter than twice its warm-up warms up for its first half.
    """
    warmup = min(schedule.warmup_epochs / schedule.epochs, 0.5) * total_steps
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
