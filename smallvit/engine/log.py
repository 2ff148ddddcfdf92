"""What a run says while it works: metrics.jsonl, train.log, progress on the terminal."""

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smallvit.core.config import Range
from smallvit.core.console import console
from smallvit.core.errors import DataError
from smallvit.core.whole_file import replacing

logger = logging.getLogger("smallvit")
REMEDY = "free some room or make it writable, and continue with --resume"
QUIET_S = 10.0  # seconds between plain progress lines where there is no terminal


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run writes.

    Attributes:
        every_steps: Steps between lines of metrics.jsonl; the device is waited for only then.
        checkpoint_steps: Steps between checkpoints; null saves at every evaluation.
    """

    every_steps: Annotated[int, Range(ge=1)] = 20
    checkpoint_steps: Annotated[int | None, Range(ge=1)] = None


class TrainLog:
    """Progress and metrics of one training run, a context manager.

    Args:
        path: ``metrics.jsonl``, or ``None`` to write none.
        title: What is being trained.
        total_steps: Steps of the whole run.
        first_step: Steps done before; later lines of an interrupted run are dropped.
    """

    def __init__(self, path: Path | None, title: str, total_steps: int, first_step: int) -> None:
        self.path = path
        self.title = title
        self.total_steps = total_steps
        self.first_step = first_step
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        if path is not None:
            _drop_lines_after(path, first_step)

    def __enter__(self) -> "TrainLog":
        """Start the progress bar."""
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(
                self.title, total=self.total_steps, completed=self.first_step, text=""
            )
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the progress bar."""
        if self._bar is not None:
            self._bar.stop()

    def write(self, step: int, metrics: Mapping[str, float], *, say: bool = False) -> None:
        """Append one line of metrics and show progress.

        Args:
            step: Steps done.
            metrics: Values by path.
            say: Whether the line goes to the terminal at any rate.
        """
        if self.path is not None:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": step, **_finite(metrics)}) + "\n")
            except OSError as error:
                raise DataError(f"cannot write {self.path} ({error.strerror}): {REMEDY}") from error
        text = describe(metrics)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
        if say or (self._bar is None and now - self._last_line >= QUIET_S):
            self._last_line = now
            left = (now - self._start) / max(step - self.first_step, 1) * (self.total_steps - step)
            eta = f"  {left:.0f} s left" if step < self.total_steps else ""
            logger.info("%s  step %d/%d  %s%s", self.title, step, self.total_steps, text, eta)


def describe(metrics: Mapping[str, float]) -> str:
    """Put the metrics that a person watches in one line."""
    shown = {
        "train/loss": "loss {:.3f}",
        "train/top1": "train {:.1%}",
        "val/top1": "val {:.2%}",
        "val/knn": "k-NN {:.2%}",
        "val/linear": "probe {:.2%}",
        "features/rank": "rank {:.1f}",
        "train/pixel_accuracy": "train pixels {:.1%}",
        "val/miou": "val mIoU {:.2%}",
        "perf/images_per_s": "{:.0f} images/s",
    }
    return "  ".join(text.format(metrics[key]) for key, text in shown.items() if key in metrics)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _drop_lines_after(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    with replacing(path, REMEDY) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
