"""The segmentation stage: settings, training on images and masks, scoring."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from smallvit.core import places, rng
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import DataError, attempt
from smallvit.core.run_folder import open_run
from smallvit.data.dataset import take_evenly
from smallvit.engine.checkpoint import AGAIN, BEST, as_scored, load_checkpoint
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.state import FitResult
from smallvit.inference.export import exported_model
from smallvit.models.registry import settings_of
from smallvit.runs.config import Call, SegmentRecipe
from smallvit.runs.finish import finish_network
from smallvit.runs.init_weights import TIMM, find_export, init_settings, load_init
from smallvit.runs.job import Job, describe_run, plan_fit, prepare_backbone
from smallvit.runs.moved import check_same
from smallvit.runs.recipe import read_layer
from smallvit.runs.session import Session
from smallvit.segment.batches import SegmentBatches, eval_batches
from smallvit.segment.data import SegmentData, load_segment_data
from smallvit.segment.heads import create_head
from smallvit.segment.metrics import (
    class_ious,
    evaluate_segmentation,
    majority_confusion,
    segment_metrics,
)
from smallvit.segment.objective import SegmentObjective
from smallvit.segment.picture import draw_segments

STAGE: Literal["segment"] = "segment"
EVAL_BATCH = 64
DRAWN_IMAGES = 8


def load_segment_recipe(recipe: Path | None, overrides: Mapping[str, Any]) -> SegmentRecipe:
    """Resolve settings: defaults, then the model that a start brings, then a file, then overrides.

    Args:
        recipe: File such as a run's recipe.yaml, or ``None``.
        overrides: Nested settings that win.

    Raises:
        ConfigError: On the first thing that is wrong.
        DataError: If the start is not there.
    """
    layers = [Layer(source="command line", values=overrides)]
    if recipe is not None:
        return resolve(SegmentRecipe, [read_layer(recipe), *layers])
    init = (overrides.get("segment") or {}).get("init", "scratch")
    if init != "scratch":
        values = {"model": _model_of(init, overrides)}
        layers.insert(0, Layer(source=f"--init {init}", values=values))
    return resolve(SegmentRecipe, layers)


def _model_of(init: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model that weights bring, with patches of the size that it was trained with."""
    model = dict(init_settings(init, overrides).get("model", {}))
    if model and not init.startswith(TIMM) and "patch_size" in settings_of(model["name"]):
        exported = exported_model(find_export(init))
        model["patch_size"] = exported.get("patch_size", model.get("patch_size"))
    return model


def score_segmentation(
    path: Path,
    *,
    split: Literal["val", "test"] = "val",
    place: Path | str | None = None,
    runtime_config: RuntimeConfig | None = None,
) -> dict[str, float]:
    """Score a finished segmentation run on a held-out split.

    Args:
        path: Run folder.
        split: Validation or test.
        place: Where the run's data is; ``None`` is where it was.
        runtime_config: Device and precision; ``None`` is the automatic choice.

    Returns:
        ``miou``, ``pixel_accuracy``, the same of calling every pixel the most frequent class
        (``majority/...``), ``iou/NAME`` of each class that is there, and ``n`` images.

    Raises:
        ConfigError: If the run is of another stage.
        DataError: If its data is no longer what it saw.
    """
    run = open_run(path, stage=STAGE)
    layer = Layer(source=str(path / "recipe.yaml"), values=run.recipe)
    runtime = open_runtime(runtime_config or RuntimeConfig())
    recipe = resolve(SegmentRecipe, [layer])
    if place is not None:
        recipe = replace(recipe, data=replace(recipe.data, path=places.absolute(place)))
    elif recipe.data.path is not None and not recipe.data.path.exists():
        raise DataError(
            f"{path}: nothing is at {recipe.data.path}; where its images and masks are elsewhere, "
            "name their place with --data"
        )
    data = load_segment_data(recipe.data, cache_dir=places.cache_dir()).to(runtime.device)
    check_same(run, data.dataset, str(path))
    session = Session(call=Call(), runtime=runtime, data=data, values={})
    objective = _create_objective(recipe, data, session)
    state, fault = attempt(partial(load_checkpoint, path / "checkpoints" / BEST), DataError)
    if state is None:
        raise DataError(f"{fault}: {AGAIN}") from fault
    objective.load_state_dict(as_scored(state))
    confusion = _confusion(objective.eval(), data, split, runtime)
    ious = zip(data.class_names, class_ious(confusion).tolist(), strict=True)
    return {
        **segment_metrics(confusion),
        **{f"majority/{name}": value for name, value in _majority(data, split).items()},
        **{f"iou/{name}": iou for name, iou in ious if iou == iou},  # NaN: nowhere in the split
        "n": float(len(data.dataset.splits[split])),
    }


def _create_objective(
    recipe: SegmentRecipe, data: SegmentData, session: Session
) -> SegmentObjective:
    """Build network and head with weights that depend on the seed alone, on the device."""
    backbone = prepare_backbone(recipe.model, num_classes=0, session=session, seed=recipe.seed)
    torch.manual_seed(rng.step_seed(recipe.seed, -2))
    head = create_head(
        backbone,
        num_classes=data.num_classes,
        image_size=data.dataset.image_size,
        config=recipe.segment.head,
    )
    return SegmentObjective(backbone, head).to(session.runtime.device)


def prepare_segment(recipe: SegmentRecipe, session: Session) -> Job:
    """Build the network, its head and the batches of a segmentation.

    Raises:
        ConfigError: If the settings do not fit each other or the data.
        DataError: If what it starts from is missing or broken.
    """
    assert isinstance(session.data, SegmentData)
    config, data, runtime = recipe.segment, session.data, session.runtime
    dataset = data.dataset
    objective = _create_objective(recipe, data, session)
    init = load_init(objective.student, config.init, dataset, allow_leak=recipe.data.allow_leak)
    order, plan = plan_fit(session, recipe, STAGE, config, select_on="val/miou")

    def evaluate() -> dict[str, float]:
        scores = segment_metrics(_confusion(objective, data, "val", runtime))
        return {f"val/{name}": value for name, value in scores.items()}

    return Job(
        plan=plan,
        objective=objective,
        batches=SegmentBatches(data, order, config.augment),
        order=order,
        evaluate=evaluate,
        finish=partial(_finish, recipe, objective, data, runtime),
        facts={
            **describe_run(
                session, recipe, STAGE, recipe.model.name, objective, total_steps=plan.total_steps
            ),
            **init.facts,
            "head": config.head.name,
            "num_classes": data.num_classes,
            "baseline": {f"val/{name}": value for name, value in _majority(data, "val").items()},
        },
        learns="labels",
        learned=init.learned,
    )


def _confusion(
    objective: SegmentObjective, data: SegmentData, split: str, runtime: Runtime
) -> torch.Tensor:
    return evaluate_segmentation(
        objective,
        eval_batches(data, data.dataset.splits[split], EVAL_BATCH),
        num_classes=data.num_classes,
        autocast=runtime.autocast,
    )


def _majority(data: SegmentData, split: str) -> dict[str, float]:
    """Score what calls every pixel the most frequent class of the training masks."""
    train, held_out = (
        data.masks[data.dataset.splits[name].index].long() for name in ("train", split)
    )
    return segment_metrics(majority_confusion(train, held_out, data.num_classes))


def _finish(
    recipe: SegmentRecipe,
    objective: SegmentObjective,
    data: SegmentData,
    runtime: Runtime,
    folder: Path,
    result: FitResult,
) -> dict[str, Any]:
    """Export the selected network; draw the curves and some validation images."""
    head, dataset = recipe.segment.head.name, data.dataset
    finish_network(
        folder,
        result,
        objective,
        objective.student,
        recipe.model,
        dataset,
        origin=(
            f"Backbone of a segmentation by smallvit, without its {head} head, "
            "which is in checkpoints/best.pt."
        ),
        fit="pad",
    )
    shown = take_evenly(dataset.splits["val"], DRAWN_IMAGES)
    (batch,) = eval_batches(data, shown, len(shown))
    objective.eval()
    with torch.no_grad(), runtime.autocast():
        predicted = objective.logits(batch.images).argmax(dim=1)
    draw_segments(
        folder / "plots" / "segments.png",
        shown.take(torch.arange(len(shown), device=shown.index.device)),
        batch.masks,
        predicted,
        class_names=data.class_names,
        title=folder.name,
    )
    return {}
