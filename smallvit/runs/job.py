"""A training stage that is ready to fit, and what its end leaves: weights, export and curves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallvit.core import rng
from smallvit.core.errors import ConfigError, explained
from smallvit.core.model_config import ModelConfig
from smallvit.core.objective import AbstractObjective
from smallvit.data.dataset import Dataset
from smallvit.data.order import Order
from smallvit.engine.checkpoint import as_scored, read_best
from smallvit.engine.curves import draw_curves
from smallvit.engine.plan import FitPlan
from smallvit.engine.state import FitResult
from smallvit.inference.export import usage, write_export
from smallvit.models.registry import create_backbone, model_arguments
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.config import AnyStage, Recipe, SegmentRecipe, TrainingConfig
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
    config: TrainingConfig,
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


def finish_network(
    folder: Path,
    result: FitResult,
    objective: AbstractObjective[Any],
    backbone: AbstractBackbone,
    model: ModelConfig,
    dataset: Dataset,
    *,
    origin: str,
    token_head: nn.Linear | None = None,
    fit: str = "crop",
) -> None:
    """Export a network with the weights that were selected, and draw the curves of its run.

    Args:
        folder: Run folder.
        result: Of the fit; its ``best`` is empty where the best weights cannot be had.
        objective: With the weights of the last step; it is given those that were selected.
        backbone: Its network.
        model: Settings of that.
        dataset: What it was trained on.
        origin: What it comes from, in sentences.
        token_head: As for ``export_network``.
        fit: As for ``export_network``.
    """
    if result.best and result.best["step"] != result.step:
        best = read_best(folder / "checkpoints", "the weights of the last step are taken")
        if best is None:
            result.best = {}
        else:
            objective.load_state_dict(as_scored(best))
    draw_curves(folder / "metrics.jsonl", folder / "plots" / "curves.png", folder.name)
    num_classes: Any = backbone.model.num_classes
    _, arguments = model_arguments(model, num_classes=num_classes, image_size=dataset.image_size)
    export_network(
        folder,
        backbone,
        dataset,
        arguments,
        title=f"{model.name} on {dataset.name}",
        origin=origin,
        metrics=result.best or result.metrics,
        token_head=token_head,
        fit=fit,
    )


def export_network(
    folder: Path,
    backbone: AbstractBackbone,
    dataset: Dataset,
    arguments: dict[str, Any],
    *,
    title: str,
    origin: str,
    metrics: Mapping[str, float],
    token_head: nn.Linear | None = None,
    fit: str = "crop",
) -> None:
    """Export a run's network with its card.

    Args:
        folder: Run folder.
        backbone: With the weights to export.
        dataset: What it was trained on.
        arguments: All arguments that build it anew.
        title: Of the card.
        origin: What it comes from, in sentences.
        metrics: Its scores on validation.
        token_head: Classifier of patch tokens that was trained beside it.
        fit: How images became squares; ``read_image`` reads files as the network saw them where
            they were cropped.
    """
    named = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "step")
    scores = f" Validation: {named}." if named else ""
    write_export(
        folder / "export",
        backbone,
        arguments=arguments,
        class_names=dataset.class_names,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
        card=f"# {title}\n\n{origin}{scores}\n\n{usage(read=fit == 'crop')}",
        pixels={"fit": fit, "grey_range": dataset.grey_range if fit == "crop" else None},
        token_head=token_head,
    )
