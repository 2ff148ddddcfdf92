"""One training stage from recipe to result: build, resume, fit, evaluate, export."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smallvit.core import places, rng
from smallvit.core.errors import ConfigError, InterruptedRunError, SmallViTError
from smallvit.core.objective import AbstractObjective
from smallvit.core.run_folder import (
    Run,
    create_folder,
    environment,
    new_folder,
    write_json,
    write_recipe,
)
from smallvit.data.loader import Dataset, Order
from smallvit.data.views import LabelledBatches, ViewBatches
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.curves import draw_curves
from smallvit.engine.fit import FitPlan, FitResult, fit
from smallvit.engine.optim import OptimConfig, ScheduleConfig, warmup_steps
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.finetune.objective import FinetuneObjective
from smallvit.inference.export import write_export
from smallvit.inference.token_pictures import draw_tokens
from smallvit.models.registry import ModelConfig, create_backbone, model_arguments
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretrain.method import AbstractPretraining, check_batch_size
from smallvit.pretrain.registry import create_objective
from smallvit.run.classifier import score_classifier
from smallvit.run.data import load_dataset, require_labels
from smallvit.run.monitor import (
    CollapseWatch,
    Monitor,
    collapse_bounds,
    take_evenly,
)
from smallvit.run.provenance import join_extra_data
from smallvit.run.recipe import (
    Recipe,
    Stage,
    open_unfinished,
    refuse_changes,
    run_values,
    stage_values,
)
from smallvit.run.start import start_from
from smallvit.run.token_labels import TokenLabels, open_token_labels

logger = logging.getLogger("smallvit")
DRAWN_IMAGES = 8


@dataclass(kw_only=True)
class Prepared:
    """A stage that is ready to fit.

    Attributes:
        model: Settings of its network.
        objective: What is trained, on the device.
        batches: Batch of a step.
        order: Order of the samples.
        total_steps: Steps of the whole run.
        optim: Optimizer settings.
        schedule: Schedule settings.
        evaluate: Scores the objective on validation.
        select_on: Metric that picks the exported weights; ``None`` takes the last step.
        exported: The network of the objective that is exported.
        monitor: What ``evaluate`` is in stage 1; ``None`` in the others.
        upstream: Cost of the runs that it builds on, by stage.
        facts: More for result.json.
    """

    model: ModelConfig
    objective: AbstractObjective[Any]
    batches: Callable[[int], Any]
    order: Order
    total_steps: int
    optim: OptimConfig
    schedule: ScheduleConfig
    evaluate: Callable[[], dict[str, float]]
    select_on: str | None
    exported: AbstractBackbone
    monitor: Monitor | None = None
    upstream: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def run_stage(
    recipe: Recipe,
    stage: Stage,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    resume: Path | None = None,
    dry_run: bool = False,
    argv: Sequence[str] = (),
) -> Run | None:
    """Train one stage, or continue it.

    Args:
        recipe: Resolved settings.
        stage: ``pretrain``, ``teacher`` or ``finetune``.
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
    if resume is not None and (overwrite or out not in (None, resume)):
        raise ConfigError("--resume goes on in its own folder: leave --out and --overwrite out")
    values = stage_values(recipe, stage)
    if resume is not None:
        # As the run has them: an older version wrote no keys that it did not know.
        run = open_unfinished(resume, stage)
        refuse_changes(resume, run_values(run, stage), values)
        values = run.recipe
    runtime = open_runtime(recipe.runtime)
    dataset = load_dataset(recipe.data).to(runtime.device)
    prepared = _prepare(recipe, stage, dataset, runtime)
    plan = FitPlan(
        title=stage,
        seed=recipe.seed,
        total_steps=prepared.total_steps,
        epoch_steps=prepared.order.size / prepared.order.batch_size,
        optim=prepared.optim,
        schedule=prepared.schedule,
        log=recipe.log,
        runtime=runtime,
        select_on=prepared.select_on,
        identity={
            "settings": json.dumps(values),
            "fingerprint": dataset.fingerprint,
            "splits": json.dumps(dataset.split_hashes),
        },
    )
    if dry_run:
        fit(prepared.objective, prepared.batches, plan, evaluate=prepared.evaluate, stop_after=1)
        logger.info("dry run of %s: settings, data, model and one step are fine", stage)
        return None
    label = f"{stage}-{prepared.model.name}-s{recipe.seed}"
    folder = resume or out or new_folder(places.runs_dir(), dataset.name, label)
    if resume is None:
        create_folder(folder, overwrite=overwrite)
        (folder / "checkpoints").mkdir()
    if resume is None:
        write_recipe(folder / "recipe.yaml", values)
    write_json(folder / "env.json", describe_environment(dataset, runtime, argv, prepared.facts))
    logger.info("%s of %s -> %s", stage, dataset.name, folder)
    with recorded(folder, _facts(recipe, stage, dataset, prepared), resume is not None) as record:
        plan = FitPlan(**{**vars(plan), "folder": folder})
        again = resume is not None and (folder / "checkpoints" / "last.pt").is_file()
        if prepared.monitor is not None:
            prepared.monitor.announce()
        result = fit(
            prepared.objective,
            prepared.batches,
            plan,
            evaluate=prepared.evaluate,
            watch=_watch(prepared, folder / "metrics.jsonl"),
            resume=again,
        )
        _finish(folder, prepared, dataset, runtime, result)
        record |= _outcome(prepared, result)
    return Run(folder)


def prepare_backbone(
    config: ModelConfig, *, num_classes: int, dataset: Dataset, runtime: Runtime, seed: int
) -> AbstractBackbone:
    """Build a network with weights that depend on the seed alone, on the device."""
    torch.manual_seed(rng.step_seed(seed, -1))
    backbone = create_backbone(config, num_classes=num_classes, image_size=dataset.image_size)
    if runtime.grad_checkpointing:
        try:
            backbone.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"runtime.grad_checkpointing is not supported by {config.name}: leave it out"
            ) from error
    return backbone.to(runtime.device)


def describe_environment(
    dataset: Dataset, runtime: Runtime, argv: Sequence[str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the contents of env.json."""
    return {
        **environment(argv),
        "device": str(runtime.device),
        "precision": "fp32" if runtime.autocast_dtype is None else "bf16",
        "threads": torch.get_num_threads(),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "counts": {name: len(split) for name, split in dataset.splits.items()},
            "broken": list(dataset.broken),
            "notes": list(dataset.notes),
        },
        "split_hashes": dataset.split_hashes,
        "teacher": facts.get("teacher"),
        "extra_data": facts.get("extra_data", "none"),
    }


@contextmanager
def recorded(folder: Path, facts: dict[str, Any], resumed: bool) -> Iterator[dict[str, Any]]:
    """Keep result.json true while a stage runs; the yielded mapping is merged in at the end."""
    path = folder / "result.json"
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if resumed and path.is_file():
        started = json.loads(path.read_text()).get("started", started)
    base = {"status": "running", "started": started, **facts}
    write_json(path, base)
    handler = logging.FileHandler(folder / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    record: dict[str, Any] = {}
    status = "failed"
    try:
        yield record
        status = "completed"
    except InterruptedRunError:
        status = "interrupted"
        raise
    except SmallViTError as error:
        record["error"] = str(error)
        raise
    except BaseException as error:
        record["error"] = repr(error)
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        write_json(path, {**base, **record, "status": status})


def _prepare(recipe: Recipe, stage: Stage, dataset: Dataset, runtime: Runtime) -> Prepared:
    if stage == "pretrain":
        return _prepare_pretrain(recipe, dataset, runtime)
    return _prepare_supervised(recipe, stage, dataset, runtime)


def _prepare_pretrain(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> Prepared:
    config = recipe.pretrain
    backbone = prepare_backbone(
        recipe.model, num_classes=0, dataset=dataset, runtime=runtime, seed=recipe.seed
    )
    facts: dict[str, Any] = {"init": "scratch", "extra_data": "none"}
    upstream: dict[str, dict[str, float]] = {}
    if config.init not in (None, "scratch"):
        init_facts, upstream = start_from(
            backbone, config.init, dataset, allow_leak=config.allow_leak
        )
        facts |= init_facts
    if config.method.views.num_local:
        _check_views(backbone, config.method.views.local_size, dataset.image_size)
    objective = create_objective(backbone, config.method, image_size=dataset.image_size)
    objective = objective.to(runtime.device)
    train = dataset.splits["train"]
    if objective.compares_images:
        check_batch_size(config.method.name, config.optim.batch_size, len(train))
    elif config.optim.batch_size > len(train):
        logger.warning(
            "each batch of %d holds all %d images %.1f times: for more steps a pass lower "
            "--batch-size",
            config.optim.batch_size,
            len(train),
            config.optim.batch_size / len(train),
        )
    order = Order(len(train), config.optim.batch_size, recipe.seed, runtime.device)
    total_steps = order.num_steps(config.schedule.epochs)
    monitor = Monitor(
        objective.exported, dataset, runtime, config.monitor, features=objective.features
    )
    return Prepared(
        model=recipe.model,
        objective=objective,
        batches=ViewBatches(
            dataset,
            order,
            config.method.views,
            total_steps,
            mask_draws=objective.mask_draws,
        ),
        order=order,
        total_steps=total_steps,
        optim=config.optim,
        schedule=config.schedule,
        evaluate=monitor,
        select_on=None,
        exported=objective.exported,
        monitor=monitor,
        upstream=upstream,
        facts={
            **facts,
            "method": config.method.name,
            "views": config.method.views.num_global + config.method.views.num_local,
            "monitor": monitor.facts,
        },
    )


def _check_views(backbone: AbstractBackbone, local_size: float, image_size: int) -> None:
    """Refuse local views of a size that the network does not take."""
    local = round(image_size * local_size)
    what = f"pretrain.method.views.local_size ({local_size}) makes views of {local} px"
    patch = max(backbone.patch_size)
    if local % patch:
        raise ConfigError(f"{what}, which patches of {patch} px do not divide")
    try:
        backbone.grid(local)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what}, but this network was built for {image_size} px alone "
            f"({' '.join(str(error).split())[:80]}): set pretrain.method.views.local_size 1"
        ) from error


def _prepare_supervised(
    recipe: Recipe, stage: Stage, dataset: Dataset, runtime: Runtime
) -> Prepared:
    require_labels(dataset, f"`smallvit {stage}`")
    config = recipe.teacher if stage == "teacher" else recipe.finetune
    model = recipe.teacher.model if stage == "teacher" else recipe.model
    backbone = prepare_backbone(
        model, num_classes=dataset.num_classes, dataset=dataset, runtime=runtime, seed=recipe.seed
    )
    facts: dict[str, Any] = {"init": "scratch", "token_labels": False, "extra_data": "none"}
    upstream: dict[str, dict[str, float]] = {}
    grid = backbone.grid(dataset.image_size)
    token_label, labels = None, TokenLabels()
    if stage == "finetune":
        if recipe.finetune.init not in (None, "scratch"):
            init_facts, init_cost = start_from(
                backbone, recipe.finetune.init, dataset, allow_leak=recipe.finetune.allow_leak
            )
            facts |= init_facts
            upstream |= init_cost
        if recipe.finetune.token_label.enabled:
            token_label = recipe.finetune.token_label
            if token_label.mix_token:
                _check_box(backbone, model.name, dataset.image_size, grid)
            labels = open_token_labels(recipe.finetune, backbone, dataset, runtime)
            seen = join_extra_data(facts["extra_data"], labels.facts.get("extra_data", "none"))
            facts |= {"token_labels": True, **labels.facts, "extra_data": seen}
            upstream |= labels.upstream
    if config.augment.repeats > max(config.schedule.epochs, 1):
        logger.warning(
            "with augment.repeats %d, schedule.epochs %g sees only %.0f %% of the images: an epoch "
            "counts samples",
            config.augment.repeats,
            config.schedule.epochs,
            100 * config.schedule.epochs / config.augment.repeats,
        )
    torch.manual_seed(rng.step_seed(recipe.seed, -2))
    objective = FinetuneObjective(
        backbone,
        num_classes=dataset.num_classes,
        config=config.method,
        token_label=token_label,
        teacher=labels.teacher,
    ).to(runtime.device)
    order = Order(
        len(dataset.splits["labelled"]),
        config.optim.batch_size,
        recipe.seed,
        runtime.device,
        repeats=config.augment.repeats,
    )
    total_steps = order.num_steps(config.schedule.epochs)
    return Prepared(
        model=model,
        objective=objective,
        batches=LabelledBatches(
            dataset,
            order,
            config.augment,
            score_maps=labels.reader,
            grid=grid,
            mix_token=token_label is not None and token_label.mix_token,
            total_steps=total_steps,
            mapped_steps=None if token_label is None else token_label.mapped_steps(total_steps),
        ),
        order=order,
        total_steps=total_steps,
        optim=config.optim,
        schedule=config.schedule,
        evaluate=lambda: {
            f"val/{name}": value
            for name, value in score_classifier(backbone, dataset, "val", runtime).items()
            if name != "n"
        },
        select_on="val/top1",
        exported=backbone,
        upstream=upstream,
        facts=facts,
    )


def _check_box(
    backbone: AbstractBackbone, name: str, image_size: int, grid: tuple[int, int]
) -> None:
    """Refuse MixToken where a token is not a whole number of the cells that the network embeds."""
    first = backbone.embed_grid(image_size)
    if first[0] % grid[0] or first[1] % grid[1]:
        raise ConfigError(
            f"{name} turns a grid of {first[0]} x {first[1]} patches into {grid[0]} x {grid[1]} "
            "tokens, so boxes of mixed tokens do not keep: set finetune.token_label.mix_token "
            "false"
        )


def _origin(facts: dict[str, Any]) -> str:
    """Say in one sentence what a network was trained from and on, for its card."""
    init = facts["init"]
    start = {"scratch": "from scratch", "weights": "from other weights"}.get(
        init, f"from a {init} run"
    )
    seen = f", which saw other data: {extra}" if (extra := facts["extra_data"]) != "none" else ""
    return f"Trained by smallvit {start}{seen}."


def _watch(prepared: Prepared, metrics_path: Path) -> CollapseWatch | None:
    """Build what stops a collapsed run, where the stage can collapse."""
    if prepared.monitor is None:
        return None
    assert isinstance(prepared.objective, AbstractPretraining)
    schedule = prepared.schedule
    start = prepared.monitor.measure_start() if prepared.facts["init"] == "scratch" else {}
    return CollapseWatch(
        prepared.monitor.config,
        method=prepared.facts["method"],
        max_entropy=prepared.objective.max_entropy,
        metrics_path=metrics_path,
        warmup_steps=warmup_steps(schedule, prepared.total_steps),
        total_steps=prepared.total_steps,
        bounds=collapse_bounds(start, prepared.monitor.facts["spread_images"]),
    )


def _facts(recipe: Recipe, stage: Stage, dataset: Dataset, prepared: Prepared) -> dict[str, Any]:
    model = prepared.exported.model
    return {
        "stage": stage,
        "dataset": dataset.name,
        "model": prepared.model.name,
        "seed": recipe.seed,
        "params": sum(p.numel() for p in model.parameters()),
        "num_labels": len(dataset.splits["labelled"]),
        "label_fraction": recipe.data.label_fraction,
        "total_steps": prepared.total_steps,
        "upstream": prepared.upstream,
        **prepared.facts,
    }


def _outcome(prepared: Prepared, result: FitResult) -> dict[str, Any]:
    samples = result.step * prepared.order.batch_size
    selected = f"{prepared.select_on} at step {result.best['step']}" if result.best else "last step"
    return {
        "steps": result.step,
        "samples_seen": samples,
        "passes": samples / prepared.order.size,
        "wall_s": result.wall_s,
        "images_per_s": samples / max(result.train_s, 1e-9),
        "selected_on": selected,
        "metrics": result.best or result.metrics,
    }


def _finish(
    folder: Path, prepared: Prepared, dataset: Dataset, runtime: Runtime, result: FitResult
) -> None:
    """Export the selected weights; draw the curves and, after stage 1, what the tokens hold."""
    best = folder / "checkpoints" / "best.pt"
    if prepared.select_on is not None and result.best and result.best["step"] != result.step:
        prepared.objective.load_state_dict(load_checkpoint(best)["objective"])
    backbone = prepared.exported
    num_classes = backbone.model.num_classes
    assert isinstance(num_classes, int)
    _, arguments = model_arguments(
        prepared.model, num_classes=num_classes, image_size=dataset.image_size
    )
    metrics = ", ".join(
        f"{k} {v:.4f}" for k, v in (result.best or result.metrics).items() if k != "step"
    )
    scores = f" Validation: {metrics}." if metrics else ""
    write_export(
        folder / "export",
        backbone,
        arguments=arguments,
        class_names=dataset.class_names,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
        card=(
            f"# {prepared.model.name} on {dataset.name}\n\n{_origin(prepared.facts)}"
            f"{scores}\n\nLoad it with "
            '`timm.create_model("local-dir:<this folder>", pretrained=True)`.\n'
        ),
        token_head=(
            prepared.objective.token_head
            if isinstance(prepared.objective, FinetuneObjective)
            else None
        ),
    )
    draw_curves(folder / "metrics.jsonl", folder / "plots" / "curves.png", folder.name)
    if prepared.monitor is not None:
        images = take_evenly(dataset.splits["val" if dataset.labelled else "train"], DRAWN_IMAGES)
        draw_tokens(
            backbone,
            images.take(torch.arange(len(images), device=images.index.device)),
            dataset.mean,
            dataset.std,
            folder / "plots",
            title=folder.name,
            autocast=runtime.autocast,
        )
