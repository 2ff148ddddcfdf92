"""The segmentation stage: settings, training on images and masks, scoring."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from smallvit.core import places, rng
from smallvit.core.alone import alone
from smallvit.core.config import Layer, resolve, to_plain
from smallvit.core.errors import DataError
from smallvit.core.run_folder import Run, open_run
from smallvit.data.order import Order
from smallvit.engine.checkpoint import AGAIN, BEST, load_scored, take_best
from smallvit.engine.config import (
    RuntimeConfig,
)
from smallvit.engine.curves import draw_curves
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.state import FitResult
from smallvit.inference.export import exported_model, usage, write_export
from smallvit.models.registry import model_arguments, settings_of
from smallvit.parallel import processes
from smallvit.runs.config import SegmentRecipe
from smallvit.runs.monitor import take_evenly
from smallvit.runs.moved import check_same
from smallvit.runs.recipe import open_unfinished, read_layer, refuse_changes
from smallvit.runs.start import TIMM, Start, find_start, start_from, start_settings
from smallvit.runs.training import Call, Job, opened, prepare_backbone, train
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

STAGE = "segment"
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
    start = (overrides.get("segment") or {}).get("init", "scratch")
    if start != "scratch":
        values = {"model": _model_of(start, overrides)}
        layers.insert(0, Layer(source=f"--init {start}", values=values))
    return resolve(SegmentRecipe, layers)


def _model_of(start: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model that a start brings, with patches of the size that it was trained with."""
    model = dict(start_settings(start, overrides).get("model", {}))
    if model and not start.startswith(TIMM) and "patch_size" in settings_of(model["name"]):
        found = find_start(start)
        export = found.path / "export" if isinstance(found, Run) else found
        model["patch_size"] = exported_model(export).get("patch_size", model.get("patch_size"))
    return model


@alone
def run_segment(
    recipe: SegmentRecipe,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    resume: Path | None = None,
    dry_run: bool = False,
    argv: Sequence[str] = (),
) -> Run | None:
    """Train a segmentation, or continue one.

    Args:
        recipe: Resolved settings.
        out: Run folder; ``None`` names one under the runs folder.
        overwrite: Replace an earlier run in ``out``.
        resume: Folder of the run to continue, with the same settings.
        dry_run: Check everything and take one step, but write nothing.
        argv: Command line, for env.json.

    Returns:
        The finished run; ``None`` after a dry run.

    Raises:
        SmallViTError: If settings, data or training are at fault; result.json then says so.
    """
    call = Call(out=out, overwrite=overwrite, resume=resume, dry_run=dry_run, argv=argv)
    with opened(recipe.runtime, call) as runtime:
        values = to_plain(recipe)
        if resume is not None:
            # As the run has them: keys that its version did not know have their defaults.
            run = open_unfinished(resume, STAGE)
            layer = Layer(source=str(resume / "recipe.yaml"), values=run.recipe)
            refuse_changes(resume, to_plain(resolve(SegmentRecipe, [layer])), values)
            values = run.written_recipe
        data = processes.ahead(partial(_load, recipe, runtime))
        if resume is not None and (resume / "env.json").is_file():
            check_same(Run(resume), data.dataset, f"--resume {resume}")
        return train(_prepare(recipe, data, runtime), runtime, values, call)


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
    data = _load(recipe, runtime)
    check_same(run, data.dataset, str(path))
    objective = _create_objective(recipe, data, runtime)
    try:
        objective.load_state_dict(load_scored(path / "checkpoints" / BEST))
    except DataError as error:
        raise DataError(f"{error}: {AGAIN}") from error
    confusion = _confusion(objective.eval(), data, split, runtime)
    ious = zip(data.class_names, class_ious(confusion).tolist(), strict=True)
    return {
        **segment_metrics(confusion),
        **{f"majority/{name}": value for name, value in _majority(data, split).items()},
        **{f"iou/{name}": iou for name, iou in ious if iou == iou},  # NaN: nowhere in the split
        "n": float(len(data.dataset.splits[split])),
    }


def _load(recipe: SegmentRecipe, runtime: Runtime) -> SegmentData:
    return load_segment_data(recipe.data, cache_dir=places.cache_dir()).to(runtime.device)


def _create_objective(
    recipe: SegmentRecipe, data: SegmentData, runtime: Runtime
) -> SegmentObjective:
    """Build network and head with weights that depend on the seed alone, on the device."""
    backbone = prepare_backbone(
        recipe.model, num_classes=0, dataset=data.dataset, runtime=runtime, seed=recipe.seed
    )
    torch.manual_seed(rng.step_seed(recipe.seed, -2))
    head = create_head(
        backbone,
        num_classes=data.num_classes,
        image_size=data.dataset.image_size,
        config=recipe.segment.head,
    )
    return SegmentObjective(backbone, head).to(runtime.device)


def _prepare(recipe: SegmentRecipe, data: SegmentData, runtime: Runtime) -> Job:
    config, dataset = recipe.segment, data.dataset
    objective = _create_objective(recipe, data, runtime)
    facts: dict[str, Any] = {"init": "scratch", "extra_data": "none"}
    start = Start()
    if config.init != "scratch":
        start = start_from(
            objective.student, config.init, dataset, allow_leak=recipe.data.allow_leak
        )
        facts |= start.facts
    order = Order(
        len(dataset.splits["train"]), config.optim.batch_size, recipe.seed, runtime.device
    )

    def evaluate() -> dict[str, float]:
        scores = segment_metrics(_confusion(objective, data, "val", runtime))
        return {f"val/{name}": value for name, value in scores.items()}

    return Job(
        stage=STAGE,
        seed=recipe.seed,
        model=recipe.model,
        dataset=dataset,
        class_names=data.class_names,
        objective=objective,
        batches=SegmentBatches(data, order, config.augment),
        order=order,
        total_steps=order.num_steps(config.schedule.epochs),
        optim=config.optim,
        schedule=config.schedule,
        log=recipe.log,
        evaluate=evaluate,
        select_on="val/miou",
        finish=partial(_finish, recipe, objective, data, runtime),
        facts={
            "params": sum(p.numel() for p in objective.parameters()),
            **facts,
            "upstream": start.cost,
            "head": config.head.name,
            "num_classes": data.num_classes,
            "baseline": {f"val/{name}": value for name, value in _majority(data, "val").items()},
        },
        provenance=facts,
        learns="labels",
        learned=start.learned,
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
    dataset = data.dataset
    if result.best and result.best["step"] != result.step:
        result.best = result.best if take_best(objective, folder / "checkpoints") else {}
    _, arguments = model_arguments(recipe.model, num_classes=0, image_size=dataset.image_size)
    metrics = ", ".join(
        f"{k} {v:.4f}" for k, v in (result.best or result.metrics).items() if k != "step"
    )
    write_export(
        folder / "export",
        objective.student,
        arguments=arguments,
        class_names=(),
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
        card=(
            f"# {recipe.model.name} on {dataset.name}\n\nBackbone of a segmentation by smallvit, "
            f"without its {recipe.segment.head.name} head, which is in checkpoints/best.pt. "
            f"Validation: {metrics}.\n\n{usage(read=False)}"
        ),
        pixels={"fit": "pad", "grey_range": None},
    )
    draw_curves(folder / "metrics.jsonl", folder / "plots" / "curves.png", folder.name)
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
