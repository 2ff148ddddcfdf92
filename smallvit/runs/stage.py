"""Running one stage, from its recipe to its finished run."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from smallvit.core.alone import alone
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run
from smallvit.engine.checkpoint import check_room, has_checkpoint
from smallvit.engine.config import LogConfig
from smallvit.engine.fit import fit
from smallvit.engine.forecast import Forecast, can_foresee, foresee
from smallvit.engine.log import read_metrics
from smallvit.engine.optim import say_cut_warmup
from smallvit.engine.plan import check_micro_batch
from smallvit.engine.runtime import open_runtime
from smallvit.engine.state import FitResult, TrainState
from smallvit.parallel import processes
from smallvit.runs.adopt import run_adopt
from smallvit.runs.config import AnyStage, Call, Recipe, SegmentRecipe, Stage
from smallvit.runs.job import Job
from smallvit.runs.label import run_label
from smallvit.runs.pretrain import prepare_pretrain
from smallvit.runs.segment import prepare_segment
from smallvit.runs.session import Session, load_data, open_session, working_run
from smallvit.runs.supervised import prepare_classifier

logger = logging.getLogger("smallvit")


@alone()
def run_stage(recipe: Recipe | SegmentRecipe, stage: AnyStage, call: Call) -> Run | None:
    """Make the run of one stage, or continue it.

    Args:
        recipe: Resolved settings.
        stage: ``pretrain``, ``teacher``, ``label``, ``finetune`` or ``segment``. A teacher is
            adopted where ``teacher.adopt`` names one.
        call: Where to, and whether at all.

    Returns:
        The finished run; ``None`` after a dry run.

    Raises:
        SmallViTError: If settings, data or training are at fault; result.json then says so.
    """
    if isinstance(recipe, Recipe) and stage == "label":
        return run_label(recipe, call)
    if isinstance(recipe, Recipe) and stage == "teacher" and recipe.teacher.adopt is not None:
        return run_adopt(recipe, call)
    with open_session(recipe, stage, call) as session:
        job = _prepare(recipe, stage, session)
        _check_batches(job)
        if not session.resumed:  # whose limit is that of its first sitting
            say_cut_warmup(job.plan.schedule)
        if call.dry_run:
            _try_step(job)
            return None
        # A refusal leaves no folder behind, so that the same command works with what it names.
        forecast = None if session.resumed else _foresee(job)
        runtime = session.runtime
        if forecast is not None:
            runtime = replace(runtime, micro_batch=forecast.micro_batch)
        with working_run(session, job.facts, learns=job.learns, learned=job.learned) as run:
            folder, record = run
            resume = processes.on_first(partial(_open_checkpoints, job, session, folder))
            result = fit(
                job.objective,
                job.batches,
                replace(job.plan, folder=folder, runtime=runtime),
                evaluate=job.evaluate,
                watch=job.create_watch(folder / "metrics.jsonl"),
                resume=resume,
                foreseen=forecast is None,
            )
            record |= processes.on_first(partial(job.finish, folder, result))
            record |= _outcome(job, result)
        return Run(folder)


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
    session = Session(call=Call(), runtime=runtime, data=load_data(recipe), values={})
    return _foresee(_prepare(recipe, stage, session))


def _prepare(recipe: Recipe | SegmentRecipe, stage: AnyStage, session: Session) -> Job:
    if isinstance(recipe, SegmentRecipe):
        return prepare_segment(recipe, session)
    if stage == "pretrain":
        return prepare_pretrain(recipe, session)
    assert stage in ("teacher", "finetune")
    return prepare_classifier(recipe, stage, session)


def _check_batches(job: Job) -> None:
    """Refuse batches that the processes or the method cannot share out.

    Raises:
        ConfigError: Saying what would do.
    """
    count, batch_size = processes.count(), job.plan.optim.batch_size
    if count > 1 and batch_size < 2 * count:
        raise ConfigError(
            f"--batch-size {batch_size} is too small for {count} processes: "
            f"each needs two images of a step, so set --batch-size {2 * count} or more"
        )
    check_micro_batch(job.objective, job.plan)


def _foresee(job: Job) -> Forecast | None:
    """Say how long a run will take and how much memory; ``None`` where only its steps tell.

    Raises:
        ConfigError: If a batch that must stay whole does not fit the memory.
        OutOfMemoryError: If not even two images at once do.
    """
    if not can_foresee(job.plan.runtime.device):
        return None
    state = TrainState(job.objective, job.plan)
    return foresee(state, job.batches, evaluations=job.plan.evaluations_left(0))


@dataclass
class _TimedBatches:
    """Batches that note when each was asked for."""

    batches: Callable[[int], Any]
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.block_steps = getattr(self.batches, "block_steps", 1)

    def __call__(self, step: int) -> Any:
        self.asked.append(time.monotonic())
        return self.batches(step)


def _try_step(job: Job) -> None:
    """Take a step and an evaluation, write nothing, and say how long the run would take."""
    batches, evaluation_s = _TimedBatches(job.batches), 0.0

    def evaluate() -> dict[str, float]:
        nonlocal evaluation_s
        start = time.monotonic()
        scores = job.evaluate()
        evaluation_s = time.monotonic() - start
        return scores

    # A CUDA device compiles in the first step, and is waited for at each line of the log.
    steps = 1 if job.plan.runtime.device.type == "cpu" else min(4, job.plan.total_steps)
    plan = replace(job.plan, log=LogConfig(every_steps=1))
    result = fit(job.objective, batches, plan, evaluate=evaluate, stop_after=steps, foreseen=True)
    whole = Forecast(
        steps=plan.total_steps,
        evaluations=plan.evaluations_left(0),
        step_s=batches.asked[-1] - batches.asked[-2] if steps > 1 else result.train_s,
        evaluation_s=evaluation_s,
    )
    logger.info("dry run of %s: settings, data, model and one step are fine; %s", plan.title, whole)


def _open_checkpoints(job: Job, session: Session, folder: Path) -> bool:
    """Make the folder of checkpoints; tell whether there is a state to go on from."""
    checkpoints = folder / "checkpoints"
    resume = session.resumed and has_checkpoint(checkpoints)
    if session.resumed and not resume:
        if any("val/" in key for row in read_metrics(folder / "metrics.jsonl") for key in row):
            raise DataError(
                f"{checkpoints} holds no checkpoint, and the run had saved some: put one back, or "
                f"train the run again, without --resume and with --out {folder} --overwrite"
            )
        logger.warning("%s holds no checkpoint: it starts at step 0", folder)
    checkpoints.mkdir(exist_ok=True)
    check_room(
        checkpoints,
        job.objective,
        selects=job.plan.select_on is not None,
        averages=job.plan.optim.ema_decay is not None,
    )
    return resume


def _outcome(job: Job, result: FitResult) -> dict[str, Any]:
    samples = result.step * job.order.batch_size
    selected = f"{job.plan.select_on} at step {result.best['step']}" if result.best else "last step"
    facts = {"micro_batch": result.micro_batch, "skipped": result.skipped or None}
    return {
        "steps": result.step,
        "samples_seen": samples,
        "passes": samples / job.order.size,
        "wall_s": result.wall_s,
        "images_per_s": samples / max(result.train_s, 1e-9),
        "selected_on": selected,
        "weights": "last" if job.plan.optim.ema_decay is None else "averaged",
        "metrics": result.best or result.metrics,
        **{name: value for name, value in facts.items() if value is not None},
    }
