"""The teacher and stage 2, ready to fit: a classifier, with the token labels that it learns."""

import logging
import operator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches
from smallvit.engine.plan import FitPlan
from smallvit.engine.state import FitResult
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.classifier import describe_yardstick, judge_classifier, score_classifier
from smallvit.runs.config import Recipe, Stage
from smallvit.runs.data import require_labels
from smallvit.runs.init_weights import Init, load_init, say_origin
from smallvit.runs.job import Job, describe_run, finish_network, plan_fit, prepare_backbone
from smallvit.runs.provenance import join_extra_data
from smallvit.runs.session import Session
from smallvit.runs.token_labels import TokenLabels, open_token_labels

logger = logging.getLogger("smallvit")
SELECT_ON = "val/top1"  # of the weights that are exported


def prepare_classifier(recipe: Recipe, stage: Stage, session: Session) -> Job:
    """Build the network and the batches of the teacher or of stage 2.

    Raises:
        ConfigError: If the settings do not fit each other or the data.
        DataError: If what it builds on is missing or broken.
    """
    dataset, runtime = session.dataset, session.runtime
    require_labels(dataset, f"`smallvit {stage}`")
    config = recipe.teacher if stage == "teacher" else recipe.finetune
    model = recipe.teacher.model if stage == "teacher" else recipe.model
    backbone = prepare_backbone(
        model, num_classes=dataset.num_classes, session=session, seed=recipe.seed
    )
    init, labels = Init(), TokenLabels()
    token_label = recipe.finetune.token_label if stage == "finetune" else None
    if token_label is not None:
        allow_leak = recipe.data.allow_leak
        init = load_init(backbone, recipe.finetune.init, dataset, allow_leak=allow_leak)
        if not token_label.enabled:
            token_label = None
    facts = {"token_labels": token_label is not None, **init.facts}
    if token_label is not None:
        if token_label.mix_token:
            _check_box(backbone, model.name, dataset.image_size)
        labels = open_token_labels(recipe, backbone, session)
        facts |= labels.facts
        for key, join in (("extra_data", join_extra_data), ("upstream", operator.or_)):
            facts[key] = join(init.facts[key], labels.facts[key])
    torch.manual_seed(rng.step_seed(recipe.seed, -2))
    objective = FinetuneObjective(
        backbone,
        num_classes=dataset.num_classes,
        config=config.method,
        token_label=token_label,
        teacher=labels.teacher,
    ).to(runtime.device)
    repeats = config.augment.repeats
    order, plan = plan_fit(
        session, recipe, stage, config, split="labelled", select_on=SELECT_ON, repeats=repeats
    )
    _say_unseen(plan, order, repeats)
    return Job(
        plan=plan,
        objective=objective,
        batches=LabeledBatches(
            dataset,
            order,
            config.augment,
            score_maps=labels.reader,
            grid=backbone.grid(dataset.image_size),
            mix_token=token_label is not None and token_label.mix_token,
            total_steps=plan.total_steps,
            mapped_steps=token_label and token_label.mapped_steps(plan.total_steps),
        ),
        order=order,
        evaluate=partial(_evaluate, backbone, session),
        finish=partial(_finish, model, objective, backbone, session, facts, stage),
        facts=describe_run(
            session, recipe, stage, model.name, backbone.model, total_steps=plan.total_steps
        )
        | facts,
        learns="labels",
        learned=init.learned | labels.learned,
    )


def _check_box(backbone: AbstractBackbone, name: str, image_size: int) -> None:
    """Refuse MixToken where a token is not a whole number of the cells that the network embeds."""
    first, grid = backbone.embed_grid(image_size), backbone.grid(image_size)
    if first[0] % grid[0] or first[1] % grid[1]:
        raise ConfigError(
            f"{name} turns a grid of {first[0]} x {first[1]} patches into {grid[0]} x {grid[1]} "
            "tokens, so boxes of mixed tokens do not keep: set finetune.token_label.mix_token "
            "false"
        )


def _say_unseen(plan: FitPlan, order: Order, repeats: int) -> None:
    """Say where repeated images leave no room for all of them."""
    samples = plan.total_steps * order.batch_size
    if repeats > 1 and samples < order.size * repeats:
        logger.warning(
            "%s sees only %.0f %% of the images: it takes %d samples (schedule.epochs %g counts "
            "them), and each image comes %d times in a row (augment.repeats)",
            plan.title,
            100 * samples / (order.size * repeats),
            samples,
            plan.schedule.epochs,
            repeats,
        )


def _evaluate(backbone: AbstractBackbone, session: Session) -> dict[str, float]:
    scores = score_classifier(backbone, session.dataset, "val", session.runtime)
    return {f"val/{name}": value for name, value in scores.items() if name != "n"}


def _finish(
    model: ModelConfig,
    objective: FinetuneObjective,
    backbone: AbstractBackbone,
    session: Session,
    facts: dict[str, Any],
    stage: Stage,
    folder: Path,
    result: FitResult,
) -> dict[str, Any]:
    """Export the selected weights, draw the curves, and hold the accuracy against one answer."""
    dataset = session.dataset
    finish_network(
        folder,
        result,
        objective,
        backbone,
        model,
        dataset,
        origin=say_origin(facts),
        token_head=objective.token_head,
    )
    _, yardstick = judge_classifier(backbone, dataset, "val", session.runtime, alone=True)
    return describe_yardstick(yardstick, stage=stage)
