"""Optimizer and schedule: AdamW or SGD with warm-up, cosine decay and a moving weight decay."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from smallvit.core.schedule import cosine
from smallvit.engine.config import GradClipMode, OptimConfig, ScheduleConfig
from smallvit.models.tokens import AbstractBackbone

# Learned positions and tokens are not weights of a product; decay would only shrink them.
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")
MOST_WARMUP = 0.25  # of a run: its rate is to be near the peak for most of it
MOST_WARMUP_BEFORE = 0.5  # of a run whose checkpoints name none
logger = logging.getLogger("smallvit")


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
