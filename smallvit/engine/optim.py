"""Optimizer and schedule: AdamW or SGD with warm-up, cosine decay and a moving weight decay."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.core.schedule import cosine
from smallvit.models.tokens import AbstractBackbone

# Learned positions and tokens are not weights of a product; decay would only shrink them.
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")
MOST_WARMUP = 0.25  # of a run: its rate is to be near the peak for most of it
MOST_WARMUP_BEFORE = 0.5  # of a run whose checkpoints name none
logger = logging.getLogger("smallvit")
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
        decay: Which parameters have it: ``products`` are the weights of matrix products and
            convolutions, so neither biases and norms nor positions and class tokens; ``matrices``
            are all of two or more axes but biases; ``all`` are all.
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


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the trained parameters, each in one group.

    Decayed groups carry ``"decayed": True``. Where the backbone has a rate of its own, each group
    is of the backbone or of the heads alone and carries its ``"lr_scale"``.
    """
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
    if config.backbone_lr_scale != 1:
        groups = list(_split_groups(groups, backbone_parameters(model), config.backbone_lr_scale))
    # Fused: one call for all parameters, and a non-finite gradient can be skipped on the device.
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def backbone_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of every backbone inside a model, but for those of its classifiers."""
    inside: set[nn.Parameter] = set()
    heads: set[nn.Parameter] = set()
    for backbone in (module for module in model.modules() if isinstance(module, AbstractBackbone)):
        classifier: nn.Module = backbone.model.get_classifier()  # pyright: ignore[reportCallIssue]
        for head in (classifier, backbone.token_head, backbone.aux_head):
            heads.update(() if head is None else head.parameters())
        inside.update(backbone.parameters())
    return inside - heads


def _split_groups(
    groups: Iterable[dict[str, Any]], backbone: set[nn.Parameter], scale: float
) -> Iterator[dict[str, Any]]:
    """Part each group into the backbone's parameters and the others."""
    for group in groups:
        for lr_scale, is_backbone in ((scale, True), (1.0, False)):
            params = [p for p in group["params"] if (p in backbone) == is_backbone]
            if params:
                yield {**group, "params": params, "lr_scale": lr_scale}


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


def warmup_steps(
    schedule: ScheduleConfig, total_steps: int, most_warmup: float = MOST_WARMUP
) -> float:
    """Return the steps of the warm-up, at most that part of a run."""
    return min(schedule.warmup_epochs / schedule.epochs, most_warmup) * total_steps


def say_cut_warmup(schedule: ScheduleConfig) -> None:
    """Say where a run is too short for its warm-up."""
    most = MOST_WARMUP * schedule.epochs
    if schedule.warmup_epochs > most:
        logger.info(
            "schedule.warmup_epochs %g is cut to %g: a warm-up takes a quarter of a run at most",
            schedule.warmup_epochs,
            most,
        )


def set_schedule(
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    *,
    step: int,
    total_steps: int,
    most_warmup: float = MOST_WARMUP,
) -> float:
    """Set learning rates and weight decay of one step.

    Args:
        optimizer: Of ``create_optimizer``.
        optim: Its settings.
        schedule: How the learning rate moves.
        step: Steps done before.
        total_steps: Steps of the whole run.
        most_warmup: Part of the run that its warm-up takes at most.

    Returns:
        The learning rate, of the heads where the backbone has another.
    """
    warmup = warmup_steps(schedule, total_steps, most_warmup)

    def rate(peak: float) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return cosine(peak, schedule.min_lr, (step - warmup) / max(total_steps - warmup, 1))

    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    decay = cosine(optim.weight_decay, end, step / total_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate(optim.lr * group.get("lr_scale", 1.0))
        if group["decayed"]:
            group["weight_decay"] = decay
    return rate(optim.lr)


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
