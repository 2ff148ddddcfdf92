"""What every training stage does around its fit: folder, resume, record, dry run."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallvit.core import places, rng
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.model_config import ModelConfig
from smallvit.core.objective import AbstractObjective
from smallvit.core.run_folder import (
    Run,
    check_target,
    create_folder,
    environment,
    new_folder,
    write_json,
    write_recipe,
)
from smallvit.data.dataset import Dataset
from smallvit.data.order import Order
from smallvit.engine.checkpoint import check_room, has_checkpoint
from smallvit.engine.config import LogConfig, OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.fit import fit
from smallvit.engine.forecast import Forecast, can_foresee, foresee
from smallvit.engine.log import read_metrics
from smallvit.engine.optim import say_cut_warmup
from smallvit.engine.plan import FitPlan, check_micro_batch
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.state import FitResult, TrainState
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel import processes
from smallvit.parallel.process_group import process_group
from smallvit.runs.learned import NOTHING, Learned, Learns, write_learned
from smallvit.runs.record import recorded

logger = logging.getLogger("smallvit")
Watch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a training command was called.

    Attributes:
        out: Run folder; ``None`` names one under the runs folder.
        overwrite: Replace an earlier run in ``out``.
        resume: Folder of the run to continue, with the same settings.
        dry_run: Check everything and take one step, but write nothing.
        argv: Command line, for env.json.
    """

    out: Path | None = None
    overwrite: bool = False
    resume: Path | None = None
    dry_run: bool = False
    argv: Sequence[str] = ()


@dataclass(kw_only=True)
class Job:
    """A training stage that is ready to fit.

    Attributes:
        stage: Its name.
        seed: Seed of the run.
        model: Settings of its network.
        dataset: Images and splits, on the device.
        objective: What is trained, on the device.
        batches: Batch of a step.
        order: Order of the samples.
        total_steps: Steps of the whole run.
        optim: Optimizer settings.
        schedule: Schedule settings.
        log: How often to write.
        evaluate: Scores the objective on validation.
        select_on: Metric that picks the exported weights; ``None`` takes the last step.
        start: Called once before the first step, if the run is no dry run.
        create_watch: Returns the ``watch`` of the fit, given metrics.jsonl.
        finish: Exports and draws, given the run folder and the result; returns what else
            result.json says of it.
        facts: What result.json says from the start.
        provenance: What env.json says of teachers and other data.
        class_names: Of the labels; ``None`` is those of the dataset.
        learns: What it learns from.
        learned: What the runs that it builds on learned.
    """

    stage: str
    seed: int
    model: ModelConfig
    dataset: Dataset
    objective: AbstractObjective[Any]
    batches: Callable[[int], Any]
    order: Order
    total_steps: int
    optim: OptimConfig
    schedule: ScheduleConfig
    log: LogConfig
    evaluate: Callable[[], dict[str, float]]
    select_on: str | None
    finish: Callable[[Path, FitResult], dict[str, Any]]
    start: Callable[[], None] = lambda: None
    create_watch: Callable[[Path], Watch | None] = lambda _: None
    facts: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    learns: Learns
    learned: Learned = NOTHING


@contextmanager
def opened(config: RuntimeConfig, call: Call) -> Iterator[Runtime]:
    """Open the device and join the other processes, once the run folder is known to be writable.

    Raises:
        ConfigError: If the call contradicts itself, or the folder or the device cannot be had.
        DataError: If the folder cannot be written.
    """
    if call.resume is not None and (call.overwrite or call.out not in (None, call.resume)):
        raise ConfigError("--resume goes on in its own folder: leave --out and --overwrite out")
    runtime = open_runtime(config)
    with process_group(runtime.device.type == "cuda"):
        if not call.dry_run:
            check = partial(check_target, call.out, resume=call.resume, overwrite=call.overwrite)
            processes.on_first(check)
        yield runtime


def train(job: Job, runtime: Runtime, values: dict[str, Any], call: Call) -> Run | None:
    """Train a stage, or go on with it.

    Args:
        job: The stage.
        runtime: Device and precision.
        values: Every setting of the run, for recipe.yaml.
        call: Where to, and whether at all.

    Returns:
        The finished run; ``None`` after a dry run.

    Raises:
        SmallViTError: If settings or training are at fault; result.json then says so.
    """
    if processes.count() > 1 and job.optim.batch_size < 2 * processes.count():
        raise ConfigError(
            f"--batch-size {job.optim.batch_size} is too small for {processes.count()} processes: "
            f"each needs two images of a step, so set --batch-size {2 * processes.count()} or more"
        )
    plan = _plan(job, runtime, values)
    check_micro_batch(job.objective, plan)
    if call.resume is None:  # whose limit is that of its first sitting
        say_cut_warmup(job.schedule)
    if call.dry_run:
        _try_step(job, plan)
        return None
    resumed = call.resume is not None
    # A refusal leaves no folder behind, so that the same command works with what it names.
    forecast = None if resumed else _foresee(job, plan)
    if forecast is not None:
        runtime = dataclasses.replace(runtime, micro_batch=forecast.micro_batch)
    folder = Path(processes.on_first(partial(_open_folder, job, values, call)))
    plan = dataclasses.replace(plan, folder=folder, runtime=runtime)
    logger.info("%s of %s -> %s", job.stage, job.dataset.name, folder)
    first = processes.is_first()
    with recorded(folder, _facts(job), resumed) if first else nullcontext({}) as record:
        again = processes.on_first(partial(_start, job, runtime, call, folder))
        job.start()
        result = fit(
            job.objective,
            job.batches,
            plan,
            evaluate=job.evaluate,
            watch=job.create_watch(folder / "metrics.jsonl"),
            resume=again,
            foreseen=resumed,
            late=forecast is None,
        )
        record |= processes.on_first(partial(job.finish, folder, result)) | _outcome(job, result)
    processes.any_of(False)  # the others wait until result.json is written
    return Run(folder)


def foresee_job(job: Job, runtime: Runtime) -> Forecast | None:
    """Say how long a stage will take and how much memory; ``None`` where only its steps tell.

    Raises:
        ConfigError: If a batch that must stay whole does not fit the memory.
        OutOfMemoryError: If not even two images at once do.
    """
    return _foresee(job, _plan(job, runtime, {}))


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


def _foresee(job: Job, plan: FitPlan) -> Forecast | None:
    if not can_foresee(plan.runtime.device):
        return None
    state = TrainState(job.objective, plan)
    return foresee(state, job.batches, evaluations=plan.evaluations_left(0))


class _TimedBatches:
    """Batches that note when each was asked for."""

    def __init__(self, batches: Callable[[int], Any]) -> None:
        self.batches = batches
        self.block_steps = getattr(batches, "block_steps", 1)
        self.asked: list[float] = []

    def __call__(self, step: int) -> Any:
        self.asked.append(time.monotonic())
        return self.batches(step)


def _try_step(job: Job, plan: FitPlan) -> None:
    """Take a step and an evaluation, write nothing, and say how long the run would take."""
    batches, evaluation_s = _TimedBatches(job.batches), 0.0

    def evaluate() -> dict[str, float]:
        nonlocal evaluation_s
        start = time.monotonic()
        scores = job.evaluate()
        evaluation_s = time.monotonic() - start
        return scores

    # A CUDA device compiles in the first step, and is waited for at each line of the log.
    steps = 1 if plan.runtime.device.type == "cpu" else min(4, plan.total_steps)
    plan = dataclasses.replace(plan, log=LogConfig(every_steps=1))
    result = fit(job.objective, batches, plan, evaluate=evaluate, stop_after=steps, foreseen=True)
    whole = Forecast(
        steps=plan.total_steps,
        evaluations=plan.evaluations_left(0),
        step_s=batches.asked[-1] - batches.asked[-2] if steps > 1 else result.train_s,
        evaluation_s=evaluation_s,
    )
    logger.info("dry run of %s: settings, data, model and one step are fine; %s", job.stage, whole)


def describe_environment(
    dataset: Dataset, runtime: Runtime, argv: Sequence[str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the contents of env.json."""
    return {
        **environment(argv),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "compiled": runtime.compiled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processes": processes.count(),
        "threads": torch.get_num_threads(),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "counts": {name: len(split) for name, split in dataset.splits.items()},
            "broken": list(dataset.broken),
            "notes": list(dataset.notes),
            "grey_range": dataset.grey_range,
        },
        "split_hashes": dataset.split_hashes,
        "teacher": facts.get("teacher"),
        "extra_data": facts.get("extra_data", "none"),
    }


def _plan(job: Job, runtime: Runtime, values: dict[str, Any]) -> FitPlan:
    return FitPlan(
        title=job.stage,
        seed=job.seed,
        total_steps=job.total_steps,
        epoch_steps=job.order.size / job.order.batch_size,
        optim=job.optim,
        schedule=job.schedule,
        log=job.log,
        runtime=runtime,
        select_on=job.select_on,
        identity={
            "settings": json.dumps(values),
            "fingerprint": job.dataset.fingerprint,
            "splits": json.dumps(job.dataset.split_hashes),
        },
    )


def _open_folder(job: Job, values: dict[str, Any], call: Call) -> str:
    """Make the run folder, or take the one to go on in."""
    label = f"{job.stage}-{job.model.name}-s{job.seed}"
    folder = call.resume or call.out or new_folder(places.runs_dir(), job.dataset.name, label)
    if call.resume is None:
        create_folder(folder, overwrite=call.overwrite)
        (folder / "checkpoints").mkdir()
        write_recipe(folder / "recipe.yaml", values)
    return str(folder)


def _start(job: Job, runtime: Runtime, call: Call, folder: Path) -> bool:
    """Say in the run folder what runs; tell whether there is a state to go on from."""
    env = describe_environment(job.dataset, runtime, call.argv, job.provenance)
    if job.class_names is not None:
        env["dataset"]["class_names"] = list(job.class_names)
    checkpoints = folder / "checkpoints"
    again = call.resume is not None and has_checkpoint(checkpoints)
    if call.resume is not None and not again:
        if any("val/" in key for row in read_metrics(folder / "metrics.jsonl") for key in row):
            raise DataError(
                f"{checkpoints} holds no checkpoint, and the run had saved some: put one back, or "
                f"train the run again, without --resume and with --out {folder} --overwrite"
            )
        logger.warning("%s holds no checkpoint: it starts at step 0", folder)
    checkpoints.mkdir(exist_ok=True)
    write_json(folder / "env.json", env)
    write_learned(folder, job.dataset, job.learns, job.learned)
    check_room(
        checkpoints,
        job.objective,
        selects=job.select_on is not None,
        averages=job.optim.ema_decay is not None,
    )
    return again


def _facts(job: Job) -> dict[str, Any]:
    return {
        "stage": job.stage,
        "dataset": job.dataset.name,
        "model": job.model.name,
        "seed": job.seed,
        "total_steps": job.total_steps,
        **job.facts,
    }


def _outcome(job: Job, result: FitResult) -> dict[str, Any]:
    samples = result.step * job.order.batch_size
    selected = f"{job.select_on} at step {result.best['step']}" if result.best else "last step"
    outcome = {
        "steps": result.step,
        "samples_seen": samples,
        "passes": samples / job.order.size,
        "wall_s": result.wall_s,
        "images_per_s": samples / max(result.train_s, 1e-9),
        "selected_on": selected,
        "weights": "last" if job.optim.ema_decay is None else "averaged",
        "metrics": result.best or result.metrics,
    }
    if result.micro_batch is not None:
        outcome["micro_batch"] = result.micro_batch
    if result.skipped:
        outcome["skipped"] = result.skipped
    return outcome
