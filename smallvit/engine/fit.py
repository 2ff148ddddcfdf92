"""The training loop: schedule, step, log, evaluate, save."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError, DivergedError, InterruptedRunError
from smallvit.core.objective import AbstractObjective, BatchT
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint
from smallvit.engine.log import LogConfig, TrainLog
from smallvit.engine.optim import OptimConfig, ScheduleConfig, create_optimizer, set_schedule
from smallvit.engine.runtime import Runtime
from smallvit.engine.step import train_step


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
    """

    step: int = 0
    wall_s: float = 0.0
    train_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)


def fit(
    objective: AbstractObjective[BatchT],
    batches: Callable[[int], BatchT],
    plan: FitPlan,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
) -> FitResult:
    """Train an objective and leave it with the weights of the last step.

    Args:
        objective: Stage to train, on the device.
        batches: Returns the batch of a step, a function of seed and step alone.
        plan: Settings.
        evaluate: Scores the objective on validation; it must leave the weights alone.
        watch: Told of the steps done and of all metrics at each evaluation, once they are logged;
            it may raise to stop the run.
        resume: Continue from ``last.pt`` in the run folder.
        stop_after: Stop after this many steps of the run (a dry run).

    Raises:
        DivergedError: If the loss or a gradient was not finite; that update was not applied.
        InterruptedRunError: After SIGTERM or SIGINT, once the state is saved.
    """
    optimizer = create_optimizer(objective, plan.optim)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    result = FitResult()
    checkpoints = plan.folder / "checkpoints" if plan.folder else None
    if resume and checkpoints is not None:
        _restore(checkpoints / "last.pt", objective, optimizer, result, plan.identity)
    metrics_path = plan.folder / "metrics.jsonl" if plan.folder else None
    end = plan.total_steps if stop_after is None else min(stop_after, plan.total_steps)
    totals: dict[str, tuple[torch.Tensor, int]] = {}
    counted = 0
    bad_step = torch.full((), -1, device=plan.runtime.device)
    sitting = lap = time.monotonic()
    earlier_s = result.wall_s
    process = rng.process_number()

    def save(name: str) -> None:
        if checkpoints is not None:
            result.wall_s = earlier_s + time.monotonic() - sitting
            state = {
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "result": vars(result),
                "identity": plan.identity,
            }
            save_checkpoint(checkpoints / name, state)

    with (
        note_signals() as received,
        TrainLog(metrics_path, plan.title, plan.total_steps, result.step) as log,
    ):
        for step in range(result.step, end):
            # Dropout and stochastic depth draw from torch's generator: seeded by step, so that a
            # resumed run draws what an unbroken one would.
            torch.manual_seed(rng.step_seed(plan.seed, step, process))
            lr = set_schedule(
                optimizer, plan.optim, plan.schedule, step=step, total_steps=plan.total_steps
            )
            objective.train()
            metrics = train_step(
                objective,
                batches(step),
                optimizer,
                parameters,
                grad_clip_norm=plan.optim.grad_clip_norm,
                grad_clip_mode=plan.optim.grad_clip_mode,
                runtime=plan.runtime,
            )
            objective.after_step((step + 1) / plan.total_steps)
            bad = metrics.pop("not_finite") > 0
            bad_step = torch.where((bad_step < 0) & bad, step, bad_step)
            for name, value in metrics.items():
                total, times = totals.get(name, (None, 0))
                totals[name] = (value if total is None else total + value, times + 1)
            counted += 1
            result.step = step + 1

            last = result.step == end
            eval_now = evaluate is not None and (last or _ends_period(step, plan))
            every = plan.log.checkpoint_steps
            stop = bool(received)  # a signal from here on waits for the next step
            save_now = last or stop or (result.step % every == 0 if every else eval_now)
            if result.step % plan.log.every_steps == 0 or eval_now or save_now:
                # The only wait for the device: one copy for all metrics since the last line.
                values = torch.stack([*(total for total, _ in totals.values()), bad_step.float()])
                *sums, bad_at = values.tolist()
                # A term that a stage leaves out from some step on is the mean of its own steps.
                counts = ((name, times) for name, (_, times) in totals.items())
                line = {
                    name: total / times for (name, times), total in zip(counts, sums, strict=True)
                }
                if bad_at >= 0:
                    raise DivergedError(int(bad_at), line)
                now = time.monotonic()
                result.train_s += now - lap
                line["perf/images_per_s"] = counted * plan.optim.batch_size / (now - lap)
                line |= {"opt/lr": lr, "epoch": result.step / plan.epoch_steps}
                for group in optimizer.param_groups:
                    if group.get("lr_scale", 1.0) != 1:
                        line["opt/lr_backbone"] = group["lr"]
                counted = 0
                totals.clear()
                if eval_now and evaluate is not None:
                    objective.eval()
                    result.metrics = evaluate()
                if eval_now:
                    line |= result.metrics
                log.write(result.step, line, say=eval_now)
                if eval_now and watch is not None:
                    watch(result.step, line)
                if eval_now and _is_best(result, plan.select_on):
                    result.best = {**result.metrics, "step": result.step}
                    save("best.pt")
                if save_now:
                    save("last.pt")
                lap = time.monotonic()
            if stop and not last:
                raise InterruptedRunError(
                    received[0],
                    f"stopped by {signal.Signals(received[0]).name} after step {result.step} of "
                    f"{plan.total_steps}, state saved"
                    + (f": continue with --resume {plan.folder}" if plan.folder else ""),
                )
    result.wall_s = earlier_s + time.monotonic() - sitting
    return result


def _ends_period(step: int, plan: FitPlan) -> bool:
    """Tell whether an evaluation is due after ``step``."""
    period = plan.schedule.eval_epochs * plan.epoch_steps
    return math.floor((step + 1) / period + 1e-9) > math.floor(step / period + 1e-9)


def _is_best(result: FitResult, select_on: str | None) -> bool:
    """Tell whether the last evaluation beats all before it; NaN never does."""
    if select_on is None:
        return False
    return result.metrics[select_on] > result.best.get(select_on, -math.inf)


def _restore(
    path: Path,
    objective: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    result: FitResult,
    identity: dict[str, Any],
) -> None:
    state = load_checkpoint(path)
    changed = [key for key, value in identity.items() if state["identity"].get(key) != value]
    if changed:
        raise ConfigError(
            f"{path} was written with other {' and '.join(changed)}: put them back, or start a new "
            "run with --init"
        )
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["result"].items():
        setattr(result, name, value)


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT for the loop; a second signal ends the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals reach the main thread only
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
