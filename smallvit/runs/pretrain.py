"""Stage 1, ready to fit: what is learned, what is watched, and what its end leaves."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from smallvit.core.errors import ConfigError, explained, reason
from smallvit.data.dataset import Dataset, take_evenly
from smallvit.data.views import ViewBatches
from smallvit.engine.optim import warmup_steps
from smallvit.engine.plan import FitPlan
from smallvit.engine.state import FitResult
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.method import AbstractPretraining, check_batch_size
from smallvit.pretraining.registry import create_objective
from smallvit.runs.config import PretrainConfig, Recipe
from smallvit.runs.init_weights import load_init, say_origin
from smallvit.runs.job import Job, describe_run, finish_network, plan_fit, prepare_backbone
from smallvit.runs.monitor import CollapseWatch, Monitor, collapse_bounds
from smallvit.runs.session import Session

logger = logging.getLogger("smallvit")
DRAWN_IMAGES = 8
UNFIT = (AssertionError, IndexError, RuntimeError, ValueError)  # timm's, of another side


def prepare_pretrain(recipe: Recipe, session: Session) -> Job:
    """Build the network, the method and the watch of stage 1.

    Raises:
        ConfigError: If the settings do not fit each other or the data.
    """
    config, dataset, runtime = recipe.pretrain, session.dataset, session.runtime
    backbone = prepare_backbone(recipe.model, num_classes=0, session=session, seed=recipe.seed)
    init = load_init(backbone, config.init, dataset, allow_leak=recipe.data.allow_leak)
    if config.method.views.num_local:
        _check_views(backbone, config.method.views.local_size, dataset.image_size)
    objective = create_objective(backbone, config.method, image_size=dataset.image_size)
    objective = objective.to(runtime.device)
    _check_method(config, objective, dataset)
    order, plan = plan_fit(session, recipe, "pretrain", config)
    monitor = Monitor(
        objective.exported, dataset, runtime, config.monitor, features=objective.features
    )
    facts = init.facts | {
        "method": config.method.name,
        "views": config.method.views.num_global + config.method.views.num_local,
        "monitor": monitor.facts,
    }
    return Job(
        plan=plan,
        objective=objective,
        batches=ViewBatches(
            dataset, order, config.method.views, plan.total_steps, mask_draws=objective.mask_draws
        ),
        order=order,
        evaluate=monitor,
        create_watch=partial(_create_watch, objective, monitor, facts, plan),
        finish=partial(_finish, recipe, objective, monitor, facts),
        facts=describe_run(
            session,
            recipe,
            "pretrain",
            recipe.model.name,
            objective.exported.model,
            total_steps=plan.total_steps,
        )
        | facts,
        learns="images",
        learned=init.learned,
    )


def _check_method(config: PretrainConfig, objective: AbstractPretraining, dataset: Dataset) -> None:
    """Refuse an average of an average and batches that are too small; say where they hold all."""
    name, batch_size = config.method.name, config.optim.batch_size
    num = len(dataset.splits["train"])
    trained = any(parameter.requires_grad for parameter in objective.exported.parameters())
    if config.optim.ema_decay is not None and not trained:
        raise ConfigError(
            f"{name} exports its momentum teacher, which is an average already: "
            "leave pretrain.optim.ema_decay out"
        )
    if objective.compares_images:
        check_batch_size(name, batch_size, num)
    elif batch_size > num:
        logger.warning(
            "each batch of %d holds all %d images %.1f times: for more steps a pass lower "
            "--batch-size",
            batch_size,
            num,
            batch_size / num,
        )


def _check_views(backbone: AbstractBackbone, local_size: float, image_size: int) -> None:
    """Refuse local views of a size that the network does not take."""
    local = round(image_size * local_size)
    what = f"pretrain.method.views.local_size ({local_size}) makes views of {local} px"
    patch = max(backbone.patch_size)
    if local % patch:
        fits = [side for side in range(patch, image_size + 1, patch) if side >= 2 * patch]
        near = min(fits, key=lambda side: abs(side - local)) / image_size
        raise ConfigError(
            f"{what}, which patches of {patch} px do not divide: pretrain.method.views.local_size "
            f"{near:.4g} would make whole patches of them"
        )
    with explained(
        lambda error: (
            f"{what}, but this network was built for {image_size} px alone "
            f"({reason(error)[:80]}): set pretrain.method.views.local_size 1"
        ),
        *UNFIT,
        into=ConfigError,
    ):
        backbone.grid(local)


def _create_watch(
    objective: AbstractPretraining,
    monitor: Monitor,
    facts: dict[str, Any],
    plan: FitPlan,
    metrics_path: Path,
) -> CollapseWatch:
    """Say what is measured, and build what stops a collapsed run."""
    monitor.announce()
    start = monitor.measure_start() if facts["init"] == "scratch" else {}
    return CollapseWatch(
        config=monitor.config,
        method=facts["method"],
        max_entropy=objective.max_entropy,
        metrics_path=metrics_path,
        warmup_steps=warmup_steps(plan.schedule, plan.total_steps),
        total_steps=plan.total_steps,
        bounds=collapse_bounds(start, monitor.facts["spread_images"]),
    )


def _finish(
    recipe: Recipe,
    objective: AbstractPretraining,
    monitor: Monitor,
    facts: dict[str, Any],
    folder: Path,
    result: FitResult,
) -> dict[str, Any]:
    """Export the network of the last step; draw the curves and what the tokens hold."""
    # Late: it brings matplotlib.
    from smallvit.inference.token_pictures import draw_tokens

    dataset, backbone = monitor.dataset, objective.exported
    finish_network(
        folder, result, objective, backbone, recipe.model, dataset, origin=say_origin(facts)
    )
    images = take_evenly(dataset.splits["val" if dataset.labelled else "train"], DRAWN_IMAGES)
    draw_tokens(
        backbone,
        images.take(),
        dataset.mean,
        dataset.std,
        folder / "plots",
        title=folder.name,
        autocast=monitor.runtime.autocast,
    )
    return {}
