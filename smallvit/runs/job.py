"""A training stage that is ready to fit."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallvit.core import rng
from smallvit.core.errors import ConfigError, explained
from smallvit.core.model_config import ModelConfig
from smallvit.core.objective import AbstractObjective
from smallvit.data.order import Order
from smallvit.engine.plan import FitPlan
from smallvit.engine.state import FitResult
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.config import (
    AnyStage,
    FinetuneConfig,
    PretrainConfig,
    Recipe,
    SegmentConfig,
    SegmentRecipe,
    TeacherConfig,
)
from smallvit.runs.learned import NOTHING, Learned, Learns
from smallvit.runs.session import Session

Watch = Callable[[int, dict[str, float]], None]


@dataclass(kw_only=True)
class Job:
    """A training stage that is ready to fit.

    Attributes:
        plan: Settings of the fit, without a folder.
        objective: What is trained, on the device.
        batches: Batch of a step.
        order: Order of the samples.
        evaluate: Scores the objective on validation.
        create_watch: Returns the ``watch`` of the fit, given metrics.jsonl; called once before the
            first step, if the run is no dry run.
        finish: Exports and draws, given the run folder and the result; returns what else
            result.json says of it.
        facts: What result.json says from the start.
        learns: What it learns from.
        learned: What the runs that it builds on learned.
    """

    plan: FitPlan
    objective: AbstractObjective[Any]
    batches: Callable[[int], Any]
    order: Order
    evaluate: Callable[[], dict[str, float]]
    finish: Callable[[Path, FitResult], dict[str, Any]]
    create_watch: Callable[[Path], Watch | None] = lambda _: None
    facts: dict[str, Any] = field(default_factory=dict)
    learns: Learns
    learned: Learned = NOTHING


def plan_fit(
    session: Session,
    recipe: Recipe | SegmentRecipe,
    stage: AnyStage,
    config: PretrainConfig | TeacherConfig | FinetuneConfig | SegmentConfig,
    *,
    split: str = "train",
    select_on: str | None = None,
    repeats: int = 1,
) -> tuple[Order, FitPlan]:
    """Return the order of a split's images in a stage, and the settings of its fit."""
    optim, schedule, runtime = config.optim, config.schedule, session.runtime
    size = len(session.dataset.splits[split])
    order = Order(size, optim.batch_size, recipe.seed, runtime.device, repeats=repeats)
    return order, FitPlan(
        title=stage,
        seed=recipe.seed,
        total_steps=order.num_steps(schedule.epochs),
        epoch_steps=size / optim.batch_size,
        optim=optim,
        schedule=schedule,
        log=recipe.log,
        runtime=runtime,
        select_on=select_on,
        identity={
            "settings": json.dumps(session.values),
            "fingerprint": session.dataset.fingerprint,
            "splits": json.dumps(session.dataset.split_hashes),
        },
    )


def describe_run(
    session: Session,
    recipe: Recipe | SegmentRecipe,
    stage: AnyStage,
    model: str,
    network: nn.Module,
    *,
    total_steps: int,
) -> dict[str, Any]:
    """Return what the result.json of every run with a network begins with."""
    labels = {}
    if isinstance(recipe, Recipe):
        labels["num_labels"] = len(session.dataset.splits["labelled"])
        labels["label_fraction"] = recipe.data.label_fraction
    return {
        "stage": stage,
        "dataset": session.dataset.name,
        "model": model,
        "seed": recipe.seed,
        "total_steps": total_steps,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        **labels,
    }


def prepare_backbone(
    config: ModelConfig, *, num_classes: int, session: Session, seed: int
) -> AbstractBackbone:
    """Build a network with weights that depend on the seed alone, on the device."""
    torch.manual_seed(rng.step_seed(seed, -1))
    image_size = session.dataset.image_size
    backbone = create_backbone(config, num_classes=num_classes, image_size=image_size)
    if session.runtime.grad_checkpointing:
        with explained(
            lambda _: f"runtime.grad_checkpointing is not supported by {config.name}: leave it out",
            AssertionError,
            AttributeError,
            into=ConfigError,
        ):
            backbone.set_grad_checkpointing()
    return backbone.to(session.runtime.device)
