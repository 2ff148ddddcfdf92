"""The training loop: schedule, step, log, evaluate, save."""

import logging
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from smallvit.core import rng
from smallvit.core.errors import (
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    ProcessLostError,
)
from smallvit.core.objective import AbstractObjective, BatchT
from smallvit.engine.checkpoint import BEST, LAST, load_checkpoint, load_newest, save_checkpoint
from smallvit.engine.ema import WeightAverage
from smallvit.engine.forecast import foresee, say_forecast
from smallvit.engine.log import LogConfig, TrainLog
from smallvit.engine.means import StepMeans
from smallvit.engine.optim import (
    MOST_WARMUP,
    MOST_WARMUP_BEFORE,
    OptimConfig,
    ScheduleConfig,
    create_optimizer,
    set_schedule,
)
from smallvit.engine.runtime import Runtime, compiled_networks, is_out_of_memory
from smallvit.engine.step import train_step
from smallvit.parallel import processes
from smallvit.parallel.by_rows import share_out
from smallvit.parallel.process_group import is_lost_connection, raising_process_lost
from smallvit.parallel.rows import own_rows

logger = logging.getLogger("smallvit")
ONE_STOP_S = 1.0  # within which signals are one
LEAST_SCALE = 1.0  # of the loss in float16: an overflow below it is the run's own


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Everything about a fit that is not the objective or its data.

    Attributes:
        title: What is trained, for progress lines.
        seed: Seed of the run.
        total_steps: Steps of the whole run.
        epoch_steps: Steps of one pass over the data; not a whole number in general.
        optim: Optimizer settings.
        schedule: Schedule settings.
        log: How often to write.
        runtime: Device and precision.
        select_on: Metric of ``evaluate`` whose maximum is kept in ``best.pt``; ``None`` keeps the
            last step.
        folder: Run folder, or ``None`` to write nothing.
        identity: Plain values that a resumed run must share with its checkpoint.
    """

    title: str
    seed: int
    total_steps: int
    epoch_steps: float
    optim: OptimConfig
    schedule: ScheduleConfig
    log: LogConfig
    runtime: Runtime
    select_on: str | None = None
    folder: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class FitResult:
    """Where a fit stands.

    Attributes:
        step: Steps done.
        wall_s: Seconds spent, over all sittings.
        train_s: Seconds of them in training steps.
        metrics: Metrics of the last evaluation.
        best: Metrics of the best evaluation, with its ``step``; empty where nothing is selected.
        micro_batch: Most images of one forward and backward pass that the memory held; ``None`` is
            all of a process.
        skipped: Steps that were taken again since they overflowed in float16.
        evaluated: Step of the last evaluation.
        most_warmup: Part of the run that its warm-up takes at most.
    """

    step: int = 0
    wall_s: float = 0.0
    train_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    micro_batch: int | None = None
    skipped: int = 0
    evaluated: int = 0
    most_warmup: float = MOST_WARMUP


def fit(
    objective: AbstractObjective[BatchT],
    batches: Callable[[int], BatchT],
    plan: FitPlan,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    foreseen: bool = False,
    late: bool = False,
) -> FitResult:
    """Train an objective and leave it with the weights of the last step, or their running average.

    Args:
        objective: Stage to train, on the device.
        batches: Returns the batch of a step, or this process's rows of it: a function of seed and
            step alone.
        plan: Settings.
        evaluate: Scores the objective on validation; it must leave the weights alone.
        watch: Told of the steps done and of all metrics at each evaluation, once they are logged;
            it may raise to stop the run.
        resume: Continue from the newest checkpoint in the run folder.
        stop_after: Stop after this many steps of the run (a dry run).
        foreseen: Say before the first step how long the run will take and how much memory, and
            take no more images at once than fit.
        late: Say after the first steps how long the run will take.

    Raises:
        ConfigError: If a batch that must stay whole is to be cut, or does not fit.
        OutOfMemoryError: If not even two images at once fit.
        DivergedError: If the loss or a gradient was not finite; that update was not applied.
        InterruptedRunError: After SIGTERM or SIGINT, once the state is saved.
        ProcessLostError: If another process ended; the state before the step at hand is saved.
    """
    training = Training(objective, plan)
    result = training.result
    folder = plan.folder if processes.is_first() else None  # one process writes
    checkpoints = folder / "checkpoints" if folder else None
    if resume and plan.folder is not None:
        training.resume(plan.folder / "checkpoints")
    metrics_path = folder / "metrics.jsonl" if folder else None
    end = plan.total_steps if stop_after is None else min(stop_after, plan.total_steps)
    scored = 0 if evaluate is None else 1
    if foreseen:
        evaluations = scored * evaluations_after(result.step, plan=plan, end=plan.total_steps)
        late = foresee(training, batches, evaluations=evaluations) is None
    means = training.means
    sitting = time.monotonic()
    earlier_s = result.wall_s

    def save(name: str) -> None:
        result.wall_s = earlier_s + time.monotonic() - sitting
        if checkpoints is not None:
            save_checkpoint(checkpoints / name, training.state_dict())

    def report(log: TrainLog, line: dict[str, float], *, eval_now: bool, save_now: bool) -> None:
        """Evaluate, write and save what is due after a step."""
        if eval_now and evaluate is not None:
            with log.pausing("evaluating"), training.scored():
                scores = evaluate()
            # What is chosen by them must be the same everywhere, to the last bit.
            result.metrics = processes.on_first(lambda: scores)
            line |= result.metrics
        told = means.tell() | result.metrics if eval_now else None
        unwritten = processes.on_first(partial(_write, log, result.step, line, told))
        if eval_now and watch is not None:
            processes.on_first(partial(watch, result.step, line))
        if eval_now:
            result.evaluated = result.step
        if eval_now and _is_best(result, plan.select_on):
            result.best = {**result.metrics, "step": result.step}
            save(BEST)
        if save_now or unwritten is not None:
            save(LAST)
        if unwritten is not None:  # told once the state is saved
            raise DataError(unwritten)

    with (
        note_signals() as received,
        _saving_if_lost(save),
        compiled_networks(objective) if plan.runtime.compiled else nullcontext(),
        TrainLog(
            metrics_path,
            plan.title,
            plan.total_steps,
            result.step,
            pauses_after=partial(evaluations_after, plan=plan, end=end),
            speaks=processes.is_first(),
        ) as log,
    ):
        if resume and evaluate is not None and _owes_evaluation(result, plan, end):
            # Another process was lost before its scores were in.
            line = {"epoch": result.step / plan.epoch_steps, **training.describe()}
            report(log, line, eval_now=True, save_now=True)
        means.start_clock()
        for step in range(result.step, end):
            means.add(step, training.take_step(step, batches))
            result.step = step + 1
            log.move(result.step)

            last = result.step == end
            eval_now = evaluate is not None and (last or _ends_period(step, plan))
            every = plan.log.checkpoint_steps
            log_now = result.step % plan.log.every_steps == 0 or eval_now or last
            # A signal from here on waits for the next step, or in several processes on CUDA
            # devices, which are not waited for here, for the next log line.
            at_once = processes.count() == 1 or plan.runtime.device.type == "cpu" or log_now
            stop = at_once and processes.any_of(bool(received))
            save_now = last or stop or (result.step % every == 0 if every else eval_now)
            if log_now or save_now:
                result.train_s += means.close().seconds  # the only wait for the device
                line = means.of_line()
                line |= {"epoch": result.step / plan.epoch_steps, **training.describe()}
                report(log, line, eval_now=eval_now, save_now=save_now)
                if late and log.step_s is not None and not last:
                    late = False
                    evaluations = scored * evaluations_after(result.step, plan=plan, end=end)
                    say_forecast(
                        plan.title, plan.runtime.device, log.step_s, end - result.step, evaluations
                    )
                means.start_clock()
            elif processes.count() == 1 and log.is_due:
                unwritten = _write(log, result.step, None, means.tell())
                if unwritten is not None:
                    save(LAST)
                    raise DataError(unwritten)
            if stop and not last:
                number = received[0] if received else signal.SIGTERM
                raise InterruptedRunError(
                    number,
                    f"stopped by {signal.Signals(number).name} after step {result.step} of "
                    f"{plan.total_steps}, state saved"
                    + (f": continue with {_resumption(plan)}" if plan.folder else ""),
                )
    if training.average is not None:
        training.average.take_over()
    result.wall_s = earlier_s + time.monotonic() - sitting
    return result


class Training:
    """What a fit changes: weights, their average, the optimizer, the loss scale, where it stands.

    Args:
        objective: Stage to train, on the device.
        plan: Settings.

    Raises:
        ConfigError: If the batches of a method that compares images are to be cut.
    """

    def __init__(self, objective: AbstractObjective[Any], plan: FitPlan) -> None:
        self.objective = objective
        self.plan = plan
        self.optimizer = create_optimizer(objective, plan.optim)
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.average: WeightAverage | None = None
        if plan.optim.ema_decay is not None:
            self.average = WeightAverage(objective, plan.optim.ema_decay)
        self.scaler: torch.amp.GradScaler | None = None
        if plan.runtime.autocast_dtype is torch.float16:
            self.scaler = torch.amp.GradScaler(plan.runtime.device.type)
        self.result = FitResult(micro_batch=plan.runtime.micro_batch)
        evaluated_every = math.floor(plan.schedule.eval_epochs * plan.epoch_steps)
        self.means = StepMeans(
            plan.runtime.device,
            max(1, min(plan.log.every_steps, evaluated_every)),
            plan.optim.batch_size,
        )
        self.rows = own_rows(plan.optim.batch_size, plan.runtime.device)
        check_micro_batch(objective, plan)
        share_out(objective)
        # What a forward pass changes, to undo it where the step is taken again.
        self.buffers: list[torch.Tensor] = list(objective.buffers())
        self.kept = [buffer.clone() for buffer in self.buffers]

    def take_step(self, step: int, batches: Callable[[int], Any]) -> dict[str, torch.Tensor]:
        """Take one step, again with fewer images at once or a smaller loss scale where need be.

        Args:
            step: Steps done before.
            batches: Returns the batch of a step.

        Returns:
            The metrics of ``train_step``.

        Raises:
            DivergedError: If float16 overflows at any scale.
            RuntimeError: If another process ended; nothing of the step is left.
            OutOfMemoryError: If there is too little memory for two images at once.
        """
        plan, objective = self.plan, self.objective
        # Dropout and stochastic depth draw from torch's generator: seeded by step, so that a
        # resumed run draws what an unbroken one would.
        seed = rng.step_seed(plan.seed, step)
        torch.manual_seed(seed)
        set_schedule(
            self.optimizer,
            plan.optim,
            plan.schedule,
            step=step,
            total_steps=plan.total_steps,
            most_warmup=self.result.most_warmup,
        )
        objective.train()
        self._note_buffers()
        while True:
            failure: Exception | None = None
            metrics: dict[str, torch.Tensor] = {}
            scale = None if self.scaler is None else self.scaler.get_scale()
            try:
                metrics = train_step(
                    objective,
                    batches(step),
                    self.optimizer,
                    self.parameters,
                    grad_clip_norm=plan.optim.grad_clip_norm,
                    grad_clip_mode=plan.optim.grad_clip_mode,
                    runtime=plan.runtime,
                    rows=self.rows,
                    micro_batch=self.result.micro_batch,
                    seed=seed,
                    scaler=self.scaler,
                )
            except Exception as error:
                if is_lost_connection(error):
                    self._undo()
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # which holds on to the step's memory
            if failure is not None:
                self._undo()
                self._use_less_memory(failure)
                continue
            if self.scaler is not None and scale is not None and self.scaler.get_scale() < scale:
                self._undo()
                self.result.skipped += 1
                if self.scaler.get_scale() < LEAST_SCALE:
                    raise DivergedError(step, {k: float(v) for k, v in metrics.items()})
                continue
            objective.after_step((step + 1) / plan.total_steps)
            if self.average is not None:
                self.average.update(step)
            return metrics

    def describe(self) -> dict[str, float]:
        """Return what the log says of the last step's settings."""
        groups = self.optimizer.param_groups
        heads = [group["lr"] for group in groups if group.get("lr_scale", 1.0) == 1]
        lines: dict[str, float] = {"opt/lr": heads[0] if heads else groups[0]["lr"]}
        for group in groups:
            if group.get("lr_scale", 1.0) != 1:
                lines["opt/lr_backbone"] = group["lr"]
        if self.scaler is not None:
            lines |= {
                "opt/loss_scale": self.scaler.get_scale(),
                "opt/skipped": float(self.result.skipped),
            }
        return lines

    @contextmanager
    def scored(self) -> Iterator[None]:
        """Have the objective as it is scored: averaged where it is, still, and not compiled."""
        self.objective.eval()
        with (
            nullcontext() if self.average is None else self.average.in_use(),
            torch.compiler.set_stance("force_eager")
            if self.plan.runtime.compiled
            else nullcontext(),
        ):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run is continued from."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "result": vars(self.result),
            "means": self.means.state(),
            "identity": self.plan.identity,
        }

    def resume(self, checkpoints: Path) -> None:
        """Go on from the newest checkpoint of a folder.

        Raises:
            ConfigError: If it is of another run.
            DataError: If none is whole.
        """
        state, path = processes.on_first(partial(load_newest, checkpoints))
        theirs, ours = state["identity"], self.plan.identity
        changed = [key for key, value in ours.items() if theirs.get(key) != value]
        if changed:
            raise ConfigError(
                f"{path} was written with other {' and '.join(changed)}: put them back, or start a "
                "new run with --init"
            )
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.means.load_state(state.get("means", []))  # older versions kept none
        least = self.result.micro_batch
        # Older runs evaluated before they saved, and had another limit of the warm-up.
        older = {"evaluated": self.plan.total_steps, "most_warmup": MOST_WARMUP_BEFORE}
        for name, value in (older | state["result"]).items():
            setattr(self.result, name, value)
        if least is not None:
            self.result.micro_batch = min(least, self.result.micro_batch or least)
        best = self.result.best
        if best and not processes.on_first(partial(_holds_best, checkpoints / BEST, best)):
            self.result.best = {}

    def drop_gradients(self) -> None:
        """Give back the memory of the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _undo(self) -> None:
        """Undo what the forward passes of a step changed; the weights are as they were."""
        self.drop_gradients()
        if self.buffers:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                self.buffers, self.kept
            )

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Undo what forward and backward passes inside change."""
        # A method may freeze some for a while; those are trained all the same, later.
        trained = [(parameter, parameter.requires_grad) for parameter in self.parameters]
        self.objective.train()
        self._note_buffers()
        try:
            yield
        finally:
            self._undo()
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)

    def use_less_memory(self, micro_batch: int, why: str) -> None:
        """Take fewer images at once from here on, and say so.

        Args:
            micro_batch: How many.
            why: What was found.
        """
        self.result.micro_batch = micro_batch
        logger.warning(
            "%s: %s: as with --micro-batch %d, %d go at once; the step stays the same but for "
            "rounding%s",
            self.plan.title,
            why,
            micro_batch,
            micro_batch,
            " and batch norms" if self._has_batch_norm() else "",
        )

    def _note_buffers(self) -> None:
        if self.buffers:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                self.kept, self.buffers
            )

    def _use_less_memory(self, failure: Exception) -> None:
        """Halve the micro-batch.

        Raises:
            ConfigError: If the batch must stay whole.
            OutOfMemoryError: If two images are too many already, or several processes train.
        """
        if processes.count() > 1:
            raise OutOfMemoryError(
                f"out of memory in process {processes.number()} of {processes.count()}: set "
                "--micro-batch (runtime.micro_batch), which leaves the step as it is; "
                f"{self._own_size()} images a process are too many"
            ) from failure
        size = min(self.result.micro_batch or self._own_size(), self._own_size())
        _refuse_cut(
            self.objective,
            self.plan,
            f"{size} are too many for the memory: lower --batch-size, or use --grad-checkpointing",
        )
        if size <= 2:
            raise OutOfMemoryError(
                "out of memory with 2 images at once: use a smaller model or image size, or "
                "--grad-checkpointing"
            ) from failure
        self.result.micro_batch = max(2, size // 2)
        logger.warning(
            "out of memory with %d images at once: the step is repeated with micro-batches of %d; "
            "it stays the same but for rounding%s",
            size,
            self.result.micro_batch,
            " and batch norms" if self._has_batch_norm() else "",
        )
        if self.plan.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def _own_size(self) -> int:
        return self.plan.optim.batch_size if self.rows is None else len(self.rows.index)

    def _has_batch_norm(self) -> bool:
        return any(isinstance(module, _BatchNorm) for module in self.objective.modules())


def _resumption(plan: FitPlan) -> str:
    """Return the command that continues a stage, whichever command began it."""
    return f"smallvit {plan.title} --resume {shlex.quote(str(plan.folder))}"


def check_micro_batch(objective: AbstractObjective[Any], plan: FitPlan) -> None:
    """Refuse micro-batches of a method that compares images.

    Raises:
        ConfigError: If the batches of a process would be cut.
    """
    most = plan.runtime.micro_batch
    if most is not None and most < -(-plan.optim.batch_size // processes.count()):
        _refuse_cut(
            objective,
            plan,
            f"runtime.micro_batch {most} would cut them: leave --micro-batch out, or set "
            f"--batch-size {most}",
        )


def _refuse_cut(objective: AbstractObjective[Any], plan: FitPlan, why: str) -> None:
    if objective.compares_images:
        raise ConfigError(
            f"{plan.title}: this method compares the images of a batch with each other, and {why}"
        )


def _holds_best(path: Path, best: dict[str, float]) -> bool:
    """Tell whether the best weights are those of the scores that are remembered; say if not."""
    try:
        step = load_checkpoint(path)["result"]["best"].get("step")
    except (ConfigError, DataError) as error:
        logger.warning("%s: the best of the evaluations to come is taken", error)
        return False
    if step != best["step"]:
        logger.warning(
            "%s is of step %s, not of %s as the state that is continued: the best of the "
            "evaluations to come is taken",
            path,
            step,
            best["step"],
        )
    return step == best["step"]


@contextmanager
def _saving_if_lost(save: Callable[[str], None]) -> Iterator[None]:
    """Save where another process is lost: what this one has is whole between two messages."""
    try:
        with raising_process_lost():
            yield
    except ProcessLostError:
        save(LAST)
        raise


def _write(
    log: TrainLog, step: int, line: dict[str, float] | None, told: dict[str, float] | None
) -> str | None:
    """Write a line of the log and say one; return what is wrong if the disk does not take it."""
    try:
        if line is not None:
            log.write(step, line)
        if told is not None:
            log.say(told)
    except DataError as error:
        return str(error)
    return None


def _ends_period(step: int, plan: FitPlan) -> bool:
    """Tell whether an evaluation is due after ``step``."""
    period = plan.schedule.eval_epochs * plan.epoch_steps
    return math.floor((step + 1) / period + 1e-9) > math.floor(step / period + 1e-9)


def evaluations_after(step: int, *, plan: FitPlan, end: int) -> int:
    """Count the evaluations that are still to come after ``step`` steps."""
    period = plan.schedule.eval_epochs * plan.epoch_steps
    whole = math.floor(end / period + 1e-9) - math.floor(step / period + 1e-9)
    return whole + (step < end and not _ends_period(end - 1, plan))


def _owes_evaluation(result: FitResult, plan: FitPlan, end: int) -> bool:
    """Tell whether the evaluation that is due after the steps done was not made."""
    due = result.step == end or (result.step > 0 and _ends_period(result.step - 1, plan))
    return due and result.evaluated < result.step


def _is_best(result: FitResult, select_on: str | None) -> bool:
    """Tell whether the last evaluation beats all before it; NaN never does."""
    if select_on is None:
        return False
    return result.metrics[select_on] > result.best.get(select_on, -math.inf)


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT for the loop; one that comes a second later ends the process at once.

    ``timeout`` and schedulers send a signal to a process and to its group, so that it comes twice.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals reach the main thread only
        return
    since = math.inf

    def note(number: int, frame: object) -> None:
        nonlocal since
        if received and time.monotonic() - since > ONE_STOP_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        since = min(since, time.monotonic())
        received.append(number)

    previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a run that is ending anyway
                signal.signal(number, handler)
