"""What a fit changes: it is saved, restored, and put back where a step is taken again."""

import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError, DataError, ProcessLostError
from smallvit.core.objective import AbstractObjective
from smallvit.engine.checkpoint import BEST, LAST, load_newest, read_best, save_checkpoint
from smallvit.engine.ema import WeightAverage
from smallvit.engine.means import StepMeans
from smallvit.engine.optim import (
    MOST_WARMUP,
    MOST_WARMUP_BEFORE,
    create_optimizer,
    set_schedule,
)
from smallvit.engine.plan import FitPlan, check_micro_batch
from smallvit.parallel import processes
from smallvit.parallel.by_rows import share_out
from smallvit.parallel.process_group import raising_process_lost
from smallvit.parallel.rows import own_rows

logger = logging.getLogger("smallvit")


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


class TrainState:
    """Weights, their average, the optimizer, the loss scale, and where the fit stands.

    Args:
        objective: Stage to train, on the device.
        plan: Settings.

    Raises:
        ConfigError: If the batches of a method that compares images are to be cut.
    """

    def __init__(self, objective: AbstractObjective[Any], plan: FitPlan) -> None:
        check_micro_batch(objective, plan)
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
        self.means = StepMeans(
            plan.runtime.device,
            max(1, min(plan.log.every_steps, math.floor(plan.eval_steps))),
            plan.optim.batch_size,
        )
        self.rows = own_rows(plan.optim.batch_size, plan.runtime.device)
        share_out(objective)
        # What a forward pass changes, to undo it where the step is taken again.
        self.buffers: list[torch.Tensor] = list(objective.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.began = time.monotonic()

    def begin_step(self, step: int) -> dict[str, Any]:
        """Set the schedule, and make ready for a step and for undoing it.

        Args:
            step: Steps done before.

        Returns:
            What ``train_step`` takes beside objective, batch and size of micro-batches. By the seed
            dropout and stochastic depth draw in a resumed run what they would in an unbroken one.
        """
        plan = self.plan
        set_schedule(
            self.optimizer,
            plan.optim,
            plan.schedule,
            step=step,
            total_steps=plan.total_steps,
            most_warmup=self.result.most_warmup,
        )
        seed = rng.step_seed(plan.seed, step)
        torch.manual_seed(seed)
        self.objective.train()
        _copy_all(self.buffers_before, self.buffers)
        return {
            "optimizer": self.optimizer,
            "parameters": self.parameters,
            "grad_clip_norm": plan.optim.grad_clip_norm,
            "grad_clip_mode": plan.optim.grad_clip_mode,
            "runtime": plan.runtime,
            "rows": self.rows,
            "seed": seed,
            "scaler": self.scaler,
        }

    def end_step(self, step: int) -> None:
        """Move what is not trained by gradient, and count the step.

        Args:
            step: Steps done before.
        """
        self.objective.after_step((step + 1) / self.plan.total_steps)
        if self.average is not None:
            self.average.update(step)
        self.result.step = step + 1

    def undo(self) -> None:
        """Undo what the forward passes of a step changed; the weights are as they were."""
        self.optimizer.zero_grad(set_to_none=True)
        _copy_all(self.buffers, self.buffers_before)

    def describe(self) -> dict[str, float]:
        """Return what the log says of where the run is and of the last step's settings."""
        groups = self.optimizer.param_groups
        rates = {group.get("lr_scale", 1.0): group["lr"] for group in groups}
        line: dict[str, float] = {"epoch": self.result.step / self.plan.epoch_steps}
        line["opt/lr"] = rates.pop(1.0, groups[0]["lr"])
        for rate in rates.values():
            line["opt/lr_backbone"] = rate
        if self.scaler is not None:
            line |= {
                "opt/loss_scale": self.scaler.get_scale(),
                "opt/skipped": float(self.result.skipped),
            }
        return line

    def score(self, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return the scores of the objective, averaged where it is, and not compiled."""
        self.objective.eval()
        with (
            nullcontext() if self.average is None else self.average.in_use(),
            torch.compiler.set_stance("force_eager")
            if self.plan.runtime.compiled
            else nullcontext(),
        ):
            scores = evaluate()
        # What is chosen by them must be the same everywhere, to the last bit.
        return processes.on_first(lambda: scores)

    def finish(self) -> None:
        """Leave the objective with its running average, where it has one."""
        if self.average is not None:
            self.average.take_over()
        self.result.wall_s = time.monotonic() - self.began

    @property
    def owes_evaluation(self) -> bool:
        """Whether the evaluation that is due after the steps done was not made.

        So it is where another process was lost before its scores were in.
        """
        step = self.result.step
        due = step == self.plan.total_steps or (step > 0 and self.plan.evaluates_after(step))
        return due and self.result.evaluated < step

    def keep_best(self) -> None:
        """Keep the weights of the best scores so far; where that fails, the evaluation is owed."""
        result, name = self.result, self.plan.select_on
        # NaN is never the best.
        if name is not None and result.metrics[name] > result.best.get(name, -math.inf):
            result.best = {**result.metrics, "step": result.step}
            self.save(BEST)
        result.evaluated = result.step

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

    def save(self, name: str) -> None:
        """Write a checkpoint of that name, in the first process and where there is a folder."""
        self.result.wall_s = time.monotonic() - self.began
        if self.plan.folder is not None and processes.is_first():
            save_checkpoint(self.plan.folder / "checkpoints" / name, self.state_dict())

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save where another process is lost inside or the disk takes no line of the log.

        Nothing of the step at hand is in what this process has.
        """
        try:
            with raising_process_lost():
                yield
        except (DataError, ProcessLostError):
            self.save(LAST)
            raise

    def resume(self) -> None:
        """Go on from the newest checkpoint in the run folder.

        Raises:
            ConfigError: If it is of another run.
            DataError: If none is whole.
        """
        assert self.plan.folder is not None, "a run without a folder has no checkpoints"
        checkpoints = self.plan.folder / "checkpoints"
        state, path = processes.on_first(partial(load_newest, checkpoints))
        stored, own = state["identity"], self.plan.identity
        changed = [key for key, value in own.items() if stored.get(key) != value]
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
        if best and not processes.on_first(partial(_holds_best, checkpoints, best)):
            self.result.best = {}
        self.began -= self.result.wall_s

    @property
    def where(self) -> str:
        """How far the run is, and what continues it, whichever command began it."""
        text = f"after step {self.result.step} of {self.plan.total_steps}, state saved"
        if self.plan.folder is None:
            return text
        folder = shlex.quote(str(self.plan.folder))
        return f"{text}: continue with smallvit {self.plan.title} --resume {folder}"


def _copy_all(into: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)  # pyright: ignore[reportPrivateImportUsage]


def _holds_best(checkpoints: Path, best: dict[str, float]) -> bool:
    """Tell whether the best weights are those of the scores that are remembered; say if not."""
    otherwise = "the best of the evaluations to come is taken"
    state = read_best(checkpoints, otherwise)
    if state is None:
        return False
    step = state["result"]["best"].get("step")
    if step != best["step"]:
        logger.warning(
            "%s is of step %s, not of %s as the state that is continued: %s",
            checkpoints / BEST,
            step,
            best["step"],
            otherwise,
        )
    return step == best["step"]
