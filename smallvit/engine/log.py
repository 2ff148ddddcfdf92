"""What a run says while it works: metrics.jsonl, train.log, progress on the terminal."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    RenderableColumn,
    TextColumn,
)
from rich.text import Text

from smallvit.core.console import console, format_duration
from smallvit.core.errors import DataError, explained
from smallvit.core.whole_file import write_text
from smallvit.parallel import processes

logger = logging.getLogger("smallvit")
REMEDY = "free some room or make it writable, and continue with --resume"
QUIET_S = 10.0  # most seconds between plain progress lines where there is no terminal
TOLD_S = 9.0  # between those with metrics, which come with the end of a step
WIDE = 100  # columns of a terminal that the bar has room for metrics on


class TrainLog:
    """Progress and metrics of one training run, a context manager.

    On a terminal a bar moves with every step. Elsewhere there is a line at least every ten seconds:
    with the metrics where a step ends, and else that the run is still at work. The first of several
    processes alone writes and says anything.

    Args:
        path: ``metrics.jsonl``, or ``None`` to write none.
        title: What is being trained.
        total_steps: Steps of the whole run.
        first_step: Steps done before; later lines of an interrupted run are dropped.
        pauses_after: Returns how many evaluations are still to come after a step.
    """

    def __init__(
        self,
        path: Path | None,
        title: str,
        total_steps: int,
        first_step: int,
        *,
        pauses_after: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self.path = path
        self.title = title
        self.total_steps = total_steps
        self.first_step = first_step
        self.step = first_step
        self.pauses_after = pauses_after
        self.speaks = processes.is_first() and not console.is_terminal
        self._bar = Progress(
            *_columns(self), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=first_step, text="")
        self._pulse = threading.Thread(target=self._say_at_work, daemon=True)
        self._ended = threading.Event()
        self._failure: DataError | None = None
        self._start = self._said_at = self._step_began = time.monotonic()
        self._told_at: float | None = None  # when the last line with metrics was said
        self._warm: float | None = None  # when the first step was done, which takes longer
        self._phase: str | None = None
        self._pauses: list[float] = []  # seconds of each
        if path is not None and processes.is_first():
            _drop_lines_after(path, first_step)

    def __enter__(self) -> "TrainLog":
        """Start the progress bar, or the clock of the lines."""
        self._bar.start()
        if self.speaks:
            self._pulse.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop them."""
        self._ended.set()
        if not self._bar.disable:
            self._bar.stop()
        if self.speaks:
            self._pulse.join()

    def move(self, step: int) -> None:
        """Note that a step is done; without metrics, which would wait for the device."""
        self.step = step
        self._step_began = time.monotonic()
        if self._warm is None:
            self._warm = self._step_began
        self._bar.update(self._task, completed=step)

    @property
    def is_due(self) -> bool:
        """Whether people wait for a line: after the first step, and then every ten seconds."""
        if self._failure is not None:
            return True
        if not self._bar.disable or self.step == self.total_steps:
            return False
        now = time.monotonic()
        if self._told_at is not None:
            return now - self._told_at >= TOLD_S
        done = max(self.step - self.first_step, 1)
        return (now - self._start) * (self.total_steps - self.first_step) / done >= QUIET_S

    @contextmanager
    def pausing(self, phase: str) -> Iterator[None]:
        """Say what is done inside in place of training."""
        self._phase, self._step_began = phase, time.monotonic()
        self._bar.update(self._task, text=phase)
        try:
            yield
        finally:
            self._phase, began = None, self._step_began
            self._step_began = time.monotonic()
            self._pauses.append(self._step_began - began)
            if self._warm is not None:
                self._warm += self._pauses[-1]

    def write(
        self, step: int, metrics: Mapping[str, float], news: Mapping[str, float] | None = None
    ) -> None:
        """Append one line of metrics, show them in the bar, and say a line where one is due.

        Args:
            step: Steps done.
            metrics: Values by path.
            news: Values of the line that is said; ``None`` says none.

        Raises:
            DataError: If a file cannot be written.
        """
        if self.path is not None:
            # JSON has no NaN.
            finite = {key: x if math.isfinite(x) else None for key, x in metrics.items()}
            with (
                explained(lambda error: f"cannot write {self.path} ({error.strerror}): {REMEDY}"),
                self.path.open("a") as file,
            ):
                file.write(json.dumps({"step": step, **finite}) + "\n")
        self._bar.update(self._task, text=describe(metrics))
        if news is not None:
            self.say(news)

    def say(self, metrics: Mapping[str, float]) -> None:
        """Say where the run is, with the metrics since the last such line.

        Raises:
            DataError: If this or an earlier line cannot be written to train.log.
        """
        if self._failure is not None:
            raise self._failure
        self._told_at = self._said_at = time.monotonic()
        logger.info("%s  %s  %s", self.where, describe(metrics), self.times)

    @property
    def where(self) -> str:
        """What is trained and how far it is."""
        share = 100 * self.step / self.total_steps
        return f"{self.title}  step {self.step}/{self.total_steps} ({share:.0f} %)"

    @property
    def times(self) -> str:
        """Time since the start, and time left from the second step on."""
        elapsed, step_s = format_duration(time.monotonic() - self._start), self.step_s
        if step_s is None or self.step == self.total_steps:
            return elapsed
        pause_s = sum(self._pauses) / max(len(self._pauses), 1)
        left_s = step_s * (self.total_steps - self.step) + pause_s * self.pauses_after(self.step)
        return f"{elapsed}, {format_duration(left_s)} left"

    def __rich__(self) -> Text:
        """Return the times for the bar, where they go on while a step is taken."""
        return Text(self.times, no_wrap=True)

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, once one after the first is done."""
        timed = self.step - self.first_step - 1
        if self._warm is None or timed < 1:
            return None
        return max(self._step_began - self._warm, 0.0) / timed

    def _say_at_work(self) -> None:
        """Say every ten seconds that the run is at work, where nothing else was said."""
        while self._failure is None and not self._ended.wait(0.2):
            now = time.monotonic()
            if now - self._said_at < QUIET_S:
                continue
            self._said_at = now
            doing = f"{self._phase or 'next step'} since {format_duration(now - self._step_began)}"
            try:
                logger.info("%s  %s  %s", self.where, doing, self.times)
            except DataError as error:  # of train.log: the loop has to end
                self._failure = error


def _columns(log: TrainLog) -> list[ProgressColumn]:
    """Return the columns of the bar; on a narrow terminal those that say how far it is."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TextColumn("{task.percentage:.0f} %"),
        RenderableColumn(log),
    ]
    if console.width >= WIDE:
        columns.insert(1, BarColumn(bar_width=20))
        columns.append(TextColumn("{task.fields[text]}"))
    return columns


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
    rows: list[dict[str, float]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _drop_lines_after(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows), REMEDY)
