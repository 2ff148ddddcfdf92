"""The segmentation stage: training on images and masks, scoring."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from smallvit.core import places, rng
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import DataError
from smallvit.core.run_folder import Run
from smallvit.data.dataset import take_evenly
from smallvit.engine.checkpoint import AGAIN, BEST, as_scored, load_checkpoint
from smallvit.engine.runtime import Runtime
from smallvit.engine.state import FitResult
from smallvit.runs.config import Call, SegmentRecipe
from smallvit.runs.init_weights import load_init
from smallvit.runs.job import Job, describe_run, finish_network, plan_fit, prepare_backbone
from smallvit.runs.moved import check_same
from smallvit.runs.session import Session
from smallvit.segment.batches import SegmentBatches, eval_batches
from smallvit.segment.data import SegmentData, load_segment_data
from smallvit.segment.heads import create_head
from smallvit.segment.objective import (
    SegmentObjective,
    class_ious,
    evaluate_segmentation,
    majority_confusion,
    segment_metrics,
)
from smallvit.segment.picture import draw_segments

STAGE: Literal["segment"] = "segment"
DRAWN_IMAGES = 8


def score_segmentation(
    run: Run, split: str, runtime: Runtime, *, place: Path | str | None = None
) -> dict[str, float]:
    """Score a finished segmentation run on a held-out split.

    Args:
        run: The run.
        split: Validation or test.
        runtime: Device and precision.
        place: Where the run's data is; ``None`` is where it was.

    Returns:
        ``miou``, ``pixel_accuracy``, the same of calling every pixel the most frequent class
        (``majority/...``), ``iou/NAME`` of each class that is there, and ``n`` images.

    Raises:
        DataError: If its data is no longer what it saw.
    """
    path = run.path
    layer = Layer(source=str(path / "recipe.yaml"), values=run.recipe)
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
    try:
        state = load_checkpoint(path / "checkpoints" / BEST)
    except DataError as error:
        raise DataError(f"{error}: {AGAIN}") from error
    objective.load_state_dict(as_scored(state))
    confusion = evaluate_segmentation(objective.eval(), data, split, runtime.autocast)
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
        scores = segment_metrics(evaluate_segmentation(objective, data, "val", runtime.autocast))
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
        shown.take(),
        batch.masks,
        predicted,
        class_names=data.class_names,
        title=folder.name,
    )
    return {}
