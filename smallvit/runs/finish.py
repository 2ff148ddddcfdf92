"""What every trained network ends with: the selected weights, its export and its curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from smallvit.core.model_config import ModelConfig
from smallvit.core.objective import AbstractObjective
from smallvit.data.dataset import Dataset
from smallvit.engine.checkpoint import as_scored, read_best
from smallvit.engine.curves import draw_curves
from smallvit.engine.state import FitResult
from smallvit.inference.export import usage, write_export
from smallvit.models.registry import model_arguments
from smallvit.models.tokens import AbstractBackbone


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
