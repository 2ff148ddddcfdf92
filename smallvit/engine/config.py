"""Settings of training; this file imports no torch, so that help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError

OptimizerName = Literal["adamw", "sgd"]
GradClipMode = Literal["global", "parameter"]
Decay = Literal["products", "matrices", "all"]

# Settings that only one of the optimizers has.
OPTIMIZER_OF: dict[str, OptimizerName] = {"betas": "adamw", "momentum": "sgd", "nesterov": "sgd"}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        name: Optimizer, ``adamw`` or ``sgd``.
        lr: Peak learning rate, at the batch size given here; it is not rescaled.
        backbone_lr_scale: Peak learning rate of the backbone over ``lr``, which is then that of the
            heads: classifiers and whatever else is trained outside the backbone. Both rates end at
            ``schedule.min_lr``.
        batch_size: Images of one optimizer step.
        weight_decay: Weight decay: decoupled in AdamW, a part of the gradient in SGD.
        decay: Which parameters decay: ``products`` is the weights of matrix products and
            convolutions (no biases, norms, positions or class tokens), ``matrices`` all parameters
            of two or more axes except biases, ``all`` every one.
        weight_decay_end: Weight decay at the end of training, reached along a cosine; null keeps
            it constant.
        betas: Decay of AdamW's two moments.
        momentum: Decay of SGD's sum of gradients; 0 is plain SGD.
        nesterov: Whether SGD looks ahead along that sum.
        grad_clip_norm: Largest L2 norm of the gradient; null leaves it as it is.
        grad_clip_mode: Whether the norm is that of all parameters together or of each by itself.
        ema_decay: Part that a running average of the weights keeps in each step; that average is
            then scored and exported. null has none. Short runs average their last tenth.
    """

    name: OptimizerName = "adamw"
    lr: Annotated[float, Range(gt=0)] = 1.0e-3
    backbone_lr_scale: Annotated[float, Range(gt=0)] = 1.0
    batch_size: Annotated[int, Range(ge=1, le=1 << 20)] = 256
    weight_decay: Annotated[float, Range(ge=0)] = 0.05
    weight_decay_end: Annotated[float | None, Range(ge=0)] = None
    decay: Decay = "products"
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    grad_clip_norm: Annotated[float | None, Range(gt=0)] = 3.0
    grad_clip_mode: GradClipMode = "global"
    ema_decay: Annotated[float | None, Range(gt=0, lt=1)] = None


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate moves.

    Attributes:
        epochs: Passes over the training images, that is samples seen over images; a fraction is
            allowed.
        warmup_epochs: Passes of linear warm-up, at most a quarter of the run.
        min_lr: Learning rate at the end of the cosine.
        eval_epochs: Passes between evaluations on validation; the last step is always evaluated.
    """

    epochs: Annotated[float, Range(gt=0, le=1e6)] = 100.0
    warmup_epochs: Annotated[float, Range(ge=0)] = 5.0
    min_lr: Annotated[float, Range(ge=0)] = 1.0e-6
    eval_epochs: Annotated[float, Range(ge=1e-3)] = 1.0


def check_schedule(optim: OptimConfig, schedule: ScheduleConfig) -> None:
    """Refuse a schedule that would end above its peak, and settings of another optimizer.

    Raises:
        ConfigError: With the values.
    """
    for key, name in OPTIMIZER_OF.items():
        value = getattr(optim, key)
        if name != optim.name and value != getattr(OptimConfig, key):
            raise ConfigError(
                f"optim.{key} ({value}) is no setting of {optim.name}: leave it out, or set "
                f"optim.name {name}"
            )
    if optim.nesterov and not optim.momentum:
        raise ConfigError(
            "optim.nesterov needs momentum: set optim.momentum above 0, such as 0.9, or leave "
            "optim.nesterov out"
        )
    if schedule.min_lr > optim.lr:
        raise ConfigError(
            f"schedule.min_lr ({schedule.min_lr}) is above optim.lr ({optim.lr}): lower it"
        )
    peak = optim.lr * optim.backbone_lr_scale
    if schedule.min_lr > peak:
        raise ConfigError(
            f"schedule.min_lr ({schedule.min_lr}) is above the backbone's learning rate, optim.lr "
            f"x optim.backbone_lr_scale = {peak:g}: lower it"
        )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run writes.

    Attributes:
        every_steps: Steps between lines of metrics.jsonl; the device is waited for only then.
        checkpoint_steps: Steps between checkpoints; null saves at every evaluation.
    """

    every_steps: Annotated[int, Range(ge=1)] = 20
    checkpoint_steps: Annotated[int | None, Range(ge=1)] = None


Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision and memory.

    Attributes:
        device: Device to compute on. ``auto`` takes a CUDA device where there is one.
        precision: Precision of matrix products. ``auto`` is bf16 on a CUDA device that has it, else
            fp32. fp16 scales the loss, and waits for the device once a step to learn of overflows.
        compile: Whether networks are compiled. ``auto`` does so on a CUDA device; on CPUs it was
            slower than the plain step.
        deterministic: Use operations alone that give the same bits each time. A CPU has no
            others; on a CUDA device they are slower.
        grad_checkpointing: Compute the network's blocks again in the backward pass: less memory
            for about a third more time.
        micro_batch: Most images of one forward and backward pass in a process; null is all of the
            step's, and fewer once these are too many for the memory. The step is the same.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    compile: Compile = "auto"
    deterministic: bool = False
    grad_checkpointing: bool = False
    micro_batch: Annotated[int | None, Range(ge=2)] = None
