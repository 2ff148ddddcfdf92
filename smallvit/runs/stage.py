"""Pretraining, the teacher and fine-tuning, from recipe to result."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallvit.core import rng
from smallvit.core.alone import alone
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.core.objective import AbstractObjective
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset
from smallvit.data.order import Order
from smallvit.data.views import LabelledBatches, ViewBatches
from smallvit.engine.checkpoint import take_best
from smallvit.engine.config import ScheduleConfig
from smallvit.engine.curves import draw_curves
from smallvit.engine.forecast import Forecast
from smallvit.engine.optim import warmup_steps
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.state import FitResult
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.inference.export import usage, write_export
from smallvit.models.registry import model_arguments
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel import processes
from smallvit.pretraining.method import AbstractPretraining, check_batch_size
from smallvit.pretraining.registry import create_objective
from smallvit.runs.classifier import judge_classifier, score_classifier
from smallvit.runs.config import Recipe, Stage
from smallvit.runs.data import check_out, load_dataset, require_labels
from smallvit.runs.monitor import CollapseWatch, Monitor, collapse_bounds, take_evenly
from smallvit.runs.moved import check_same
from smallvit.runs.provenance import join_extra_data
from smallvit.runs.recipe import open_unfinished, refuse_changes, run_values, stage_values
from smallvit.runs.start import Start, start_from
from smallvit.runs.token_labels import TokenLabels, open_token_labels
from smallvit.runs.training import Call, Job, foresee_job, opened, prepare_backbone, train

logger = logging.getLogger("smallvit")
DRAWN_IMAGES = 8
SELECT_ON = "val/top1"  # of the weights that are exported


@alone
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
    call = Call(out=out, overwrite=overwrite, resume=resume, dry_run=dry_run, argv=argv)
    if resume is None and not dry_run:
        check_out(out, recipe.data)
    with opened(recipe.runtime, call) as runtime:
        values = stage_values(recipe, stage)
        if resume is not None:
            # As the run has them: an older version wrote no keys that it did not know.
            run = open_unfinished(resume, stage)
            refuse_changes(resume, run_values(run, stage), values)
            values = run.written_recipe
        dataset = processes.ahead(partial(load_dataset, recipe.data)).to(runtime.device)
        if resume is not None and (resume / "env.json").is_file():
            check_same(Run(resume), dataset, f"--resume {resume}")
        return train(_prepare(recipe, stage, dataset, runtime), runtime, values, call)


def foresee_stage(recipe: Recipe, stage: Stage) -> Forecast | None:
    """Say how long a stage will take on this machine, without a step and without a file.

    Args:
        recipe: Resolved settings.
        stage: ``pretrain``, ``teacher`` or ``finetune``.

    Returns:
        ``None`` where only the steps tell: on a CUDA device and in several processes.

    Raises:
        SmallViTError: If settings or data are at fault, or the memory is too little.
    """
    runtime = open_runtime(recipe.runtime)
    if runtime.device.type != "cpu":
        return None
    dataset = load_dataset(recipe.data)
    return foresee_job(_prepare(recipe, stage, dataset, runtime), runtime)


def _prepare(recipe: Recipe, stage: Stage, dataset: Dataset, runtime: Runtime) -> Job:
    if stage == "pretrain":
        return _prepare_pretrain(recipe, dataset, runtime)
    return _prepare_supervised(recipe, stage, dataset, runtime)


def _prepare_pretrain(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> Job:
    config = recipe.pretrain
    backbone = prepare_backbone(
        recipe.model, num_classes=0, dataset=dataset, runtime=runtime, seed=recipe.seed
    )
    facts: dict[str, Any] = {"init": "scratch", "extra_data": "none"}
    start = Start()
    if config.init not in (None, "scratch"):
        start = start_from(backbone, config.init, dataset, allow_leak=recipe.data.allow_leak)
        facts |= start.facts
    if config.method.views.num_local:
        _check_views(backbone, config.method.views.local_size, dataset.image_size)
    objective = create_objective(backbone, config.method, image_size=dataset.image_size)
    objective = objective.to(runtime.device)
    trained = any(parameter.requires_grad for parameter in objective.exported.parameters())
    if config.optim.ema_decay is not None and not trained:
        raise ConfigError(
            f"{config.method.name} exports its momentum teacher, which is an average already: "
            "leave pretrain.optim.ema_decay out"
        )
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
    facts |= {
        "method": config.method.name,
        "views": config.method.views.num_global + config.method.views.num_local,
        "monitor": monitor.facts,
    }
    return Job(
        stage="pretrain",
        seed=recipe.seed,
        model=recipe.model,
        dataset=dataset,
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
        log=recipe.log,
        evaluate=monitor,
        select_on=None,
        start=monitor.announce,
        create_watch=partial(
            _create_watch, objective, monitor, facts, config.schedule, total_steps
        ),
        finish=partial(
            _finish, recipe.model, objective, objective.exported, dataset, facts, monitor=monitor
        ),
        facts=_describe(recipe, dataset, objective.exported, start.cost) | facts,
        provenance=facts,
        learns="images",
        learned=start.learned,
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
    try:
        backbone.grid(local)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what}, but this network was built for {image_size} px alone "
            f"({' '.join(str(error).split())[:80]}): set pretrain.method.views.local_size 1"
        ) from error


def _prepare_supervised(recipe: Recipe, stage: Stage, dataset: Dataset, runtime: Runtime) -> Job:
    require_labels(dataset, f"`smallvit {stage}`")
    config = recipe.teacher if stage == "teacher" else recipe.finetune
    model = recipe.teacher.model if stage == "teacher" else recipe.model
    backbone = prepare_backbone(
        model, num_classes=dataset.num_classes, dataset=dataset, runtime=runtime, seed=recipe.seed
    )
    facts: dict[str, Any] = {"init": "scratch", "token_labels": False, "extra_data": "none"}
    upstream: dict[str, dict[str, float]] = {}
    grid = backbone.grid(dataset.image_size)
    token_label, labels, start = None, TokenLabels(), Start()
    if stage == "finetune":
        if recipe.finetune.init not in (None, "scratch"):
            start = start_from(
                backbone, recipe.finetune.init, dataset, allow_leak=recipe.data.allow_leak
            )
            facts |= start.facts
            upstream |= start.cost
        if recipe.finetune.token_label.enabled:
            token_label = recipe.finetune.token_label
            if token_label.mix_token:
                _check_box(backbone, model.name, dataset.image_size, grid)
            labels = open_token_labels(
                recipe.finetune, backbone, dataset, runtime, allow_leak=recipe.data.allow_leak
            )
            seen = join_extra_data(facts["extra_data"], labels.facts.get("extra_data", "none"))
            facts |= {"token_labels": True, **labels.facts, "extra_data": seen}
            upstream |= labels.upstream
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
    samples = total_steps * config.optim.batch_size
    if samples < order.size * config.augment.repeats and config.augment.repeats > 1:
        logger.warning(
            "%s sees only %.0f %% of the images: it takes %d samples (schedule.epochs %g counts "
            "them), and each image comes %d times in a row (augment.repeats)",
            stage,
            100 * samples / (order.size * config.augment.repeats),
            samples,
            config.schedule.epochs,
            config.augment.repeats,
        )
    return Job(
        stage=stage,
        seed=recipe.seed,
        model=model,
        dataset=dataset,
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
        log=recipe.log,
        evaluate=lambda: {
            f"val/{name}": value
            for name, value in score_classifier(backbone, dataset, "val", runtime).items()
            if name != "n"
        },
        select_on=SELECT_ON,
        finish=partial(
            _finish,
            model,
            objective,
            backbone,
            dataset,
            facts,
            judge=partial(judge_classifier, backbone, dataset, runtime, stage=stage),
        ),
        facts=_describe(recipe, dataset, backbone, upstream) | facts,
        provenance=facts,
        learns="labels",
        learned=start.learned | labels.learned,
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


def _create_watch(
    objective: AbstractPretraining,
    monitor: Monitor,
    facts: dict[str, Any],
    schedule: ScheduleConfig,
    total_steps: int,
    metrics_path: Path,
) -> CollapseWatch:
    """Build what stops a collapsed run."""
    start = monitor.measure_start() if facts["init"] == "scratch" else {}
    return CollapseWatch(
        monitor.config,
        method=facts["method"],
        max_entropy=objective.max_entropy,
        metrics_path=metrics_path,
        warmup_steps=warmup_steps(schedule, total_steps),
        total_steps=total_steps,
        bounds=collapse_bounds(start, monitor.facts["spread_images"]),
    )


def _describe(
    recipe: Recipe,
    dataset: Dataset,
    exported: AbstractBackbone,
    upstream: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Return what result.json says of a run from the start."""
    return {
        "params": sum(p.numel() for p in exported.model.parameters()),
        "num_labels": len(dataset.splits["labelled"]),
        "label_fraction": recipe.data.label_fraction,
        "upstream": upstream,
    }


def _finish(
    model: ModelConfig,
    objective: AbstractObjective[Any],
    backbone: AbstractBackbone,
    dataset: Dataset,
    facts: dict[str, Any],
    folder: Path,
    result: FitResult,
    *,
    monitor: Monitor | None = None,
    judge: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Export the selected weights; draw the curves and, after stage 1, what the tokens hold.

    Returns:
        What ``judge`` says of the selected weights.
    """
    if result.best and result.best["step"] != result.step:
        result.best = result.best if take_best(objective, folder / "checkpoints") else {}
    num_classes = backbone.model.num_classes
    assert isinstance(num_classes, int)
    _, arguments = model_arguments(model, num_classes=num_classes, image_size=dataset.image_size)
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
        card=(f"# {model.name} on {dataset.name}\n\n{_origin(facts)}{scores}\n\n{usage()}"),
        pixels={"fit": "crop", "grey_range": dataset.grey_range},
        token_head=objective.token_head if isinstance(objective, FinetuneObjective) else None,
    )
    draw_curves(folder / "metrics.jsonl", folder / "plots" / "curves.png", folder.name)
    if monitor is not None:
        # Late: it brings matplotlib.
        from smallvit.inference.token_pictures import draw_tokens

        images = take_evenly(dataset.splits["val" if dataset.labelled else "train"], DRAWN_IMAGES)
        draw_tokens(
            backbone,
            images.take(torch.arange(len(images), device=images.index.device)),
            dataset.mean,
            dataset.std,
            folder / "plots",
            title=folder.name,
            autocast=monitor.runtime.autocast,
        )
    return judge()
