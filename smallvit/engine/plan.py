"""What a fit is told: everything but the objective and its data."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallvit.core.errors import ConfigError
from smallvit.core.objective import AbstractObjective
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.engine.runtime import Runtime
from smallvit.parallel import processes


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

    @property
    def eval_steps(self) -> float:
        """Steps between two evaluations; not a whole number in general."""
        return self.schedule.eval_epochs * self.epoch_steps

    def evaluates_after(self, steps: int) -> bool:
        """Tell whether an evaluation is due after so many steps, by the number of passes."""
        return self._evaluations_by(steps) > self._evaluations_by(steps - 1)

    def evaluations_left(self, steps: int) -> int:
        """Count the evaluations that are to come after so many steps."""
        whole = self._evaluations_by(self.total_steps) - self._evaluations_by(steps)
        of_the_end = steps < self.total_steps and not self.evaluates_after(self.total_steps)
        return whole + of_the_end

    def _evaluations_by(self, steps: int) -> int:
        return math.floor(steps / self.eval_steps + 1e-9)


def check_micro_batch(objective: AbstractObjective[Any], plan: FitPlan) -> None:
    """Refuse micro-batches of a method that compares images.

    Raises:
        ConfigError: If the batches of a process would be cut.
    """
    most = plan.runtime.micro_batch
    if most is not None and most < -(-plan.optim.batch_size // processes.count()):
        refuse_cut(
            objective,
            plan,
            f"runtime.micro_batch {most} would cut them: leave --micro-batch out, or set "
            f"--batch-size {most}",
        )


def refuse_cut(objective: AbstractObjective[Any], plan: FitPlan, why: str) -> None:
    """Refuse to cut a batch where the method compares its images with each other.

    Raises:
        ConfigError: Saying why it would be cut.
    """
    if objective.compares_images:
        raise ConfigError(
            f"{plan.title}: this method compares the images of a batch with each other, and {why}"
        )
