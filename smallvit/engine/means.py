"""Training metrics averaged over whole intervals, without waiting for the device at each step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from smallvit.core.errors import DivergedError
from smallvit.parallel import processes

OF_THE_STEP = ("opt/grad_norm",)  # in several processes the same in each


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums of metrics over some steps.

    Attributes:
        steps: How many.
        seconds: What they took.
        totals: Sum of each metric, and of how many steps: a stage may leave one out.
    """

    steps: int = 0
    seconds: float = 0.0
    totals: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        """Join the steps of two."""
        totals = dict(self.totals)
        for name, (total, times) in other.totals.items():
            before, earlier = totals.get(name, (0.0, 0))
            totals[name] = (before + total, earlier + times)
        return Sums(
            steps=self.steps + other.steps, seconds=self.seconds + other.seconds, totals=totals
        )

    def __neg__(self) -> "Sums":
        """Return what takes these steps out of a sum that they are in."""
        totals = {name: (-total, -times) for name, (total, times) in self.totals.items()}
        return Sums(steps=-self.steps, seconds=-self.seconds, totals=totals)

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the mean of each metric over the steps that had it, and the images per second."""
        found = {name: total / times for name, (total, times) in self.totals.items() if times}
        if self.steps:
            found["perf/images_per_s"] = self.steps * batch_size / max(self.seconds, 1e-9)
        return found


class StepMeans:
    """What the lines of the log say of the training steps.

    A line of metrics.jsonl is the mean over the steps since the line before. Where an evaluation or
    a checkpoint comes soon after a line, those are few and would say more of their batches than of
    the run: the steps of the lines before count too, until they are ``least_steps``. A line for
    people is the mean over the steps since the last one that they were told.

    Args:
        device: Where the metrics are.
        least_steps: Fewest steps that a line of metrics.jsonl is of, where there were so many.
        batch_size: Images of a step.
    """

    def __init__(self, device: torch.device, least_steps: int, batch_size: int) -> None:
        self.least_steps = least_steps
        self.batch_size = batch_size
        self.recent: list[Sums] = []
        self.untold = Sums()
        self._totals: dict[str, tuple[Tensor, int]] = {}
        self._steps = 0
        self._bad_step = torch.full((), -1, device=device)
        self._lap = time.monotonic()

    def start_clock(self) -> None:
        """Begin to time the steps to come: what was done meanwhile was none."""
        self._lap = time.monotonic()

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Add those of a step, on the device.

        Args:
            step: Steps done before.
            metrics: As ``train_step`` returns them; ``not_finite`` says whether the step was bad.
        """
        bad = metrics.pop("not_finite") > 0
        self._bad_step = torch.where((self._bad_step < 0) & bad, step, self._bad_step)
        for name, value in metrics.items():
            total, times = self._totals.get(name, (None, 0))
            self._totals[name] = (value if total is None else total + value, times + 1)
        self._steps += 1

    def close(self) -> Sums:
        """End the interval of a line; the only wait for the device, and a message to the others.

        Returns:
            The sums of the steps since the line before.

        Raises:
            DivergedError: If one of them was bad, with the first.
        """
        sums = self._look()
        self._totals, self._steps = {}, 0
        self.recent.append(sums)
        while sum(part.steps for part in self.recent[1:]) >= self.least_steps:
            del self.recent[0]
        self.untold += sums
        return sums

    def of_line(self) -> dict[str, float]:
        """Return the means that the line at hand has, once its interval is closed."""
        return sum(self.recent, Sums()).means(self.batch_size)

    def tell(self) -> dict[str, float]:
        """Return the means over the steps since the last call; waits for the device.

        Raises:
            DivergedError: If one of the steps was bad, with the first.
        """
        still_open = self._look() if self._steps else Sums()
        sums = self.untold + still_open
        self.untold = -still_open  # its interval will be closed with these steps in it
        return sums.means(self.batch_size)

    def state(self) -> list[dict[str, Any]]:
        """Return plain values for a checkpoint, so that a resumed run knows the steps before."""
        return [asdict(part) for part in self.recent]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Go on after what ``state`` returned."""
        self.recent = [Sums(**part) for part in state]

    def _look(self) -> Sums:
        """Copy the sums since the last line to the host, all at once, and look for a bad step."""
        values = torch.stack(
            [*(total for total, _ in self._totals.values()), self._bad_step.float()]
        )
        if processes.count() > 1:
            # Each process has its share of the batch in all but what is of the whole step.
            alike = [name in OF_THE_STEP for name in self._totals]
            whole = torch.tensor([*alike, True], device=values.device)
            values = torch.where(whole, values, processes.add_up_(values.clone()))
        *sums, bad_step = values.tolist()
        counts = ((name, times) for name, (_, times) in self._totals.items())
        found = Sums(
            steps=self._steps,
            seconds=time.monotonic() - self._lap,
            totals={
                name: (total, times) for (name, times), total in zip(counts, sums, strict=True)
            },
        )
        if bad_step >= 0:
            raise DivergedError(int(bad_step), found.means(self.batch_size))
        return found
