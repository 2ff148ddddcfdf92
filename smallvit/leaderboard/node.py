"""One run of a suite in a process of its own: ``python -m smallvit.leaderboard.node``.

Its job comes as a line of JSON on standard input, which stays open: when the process that started
it dies, the run saves and stops. Its outcome goes as a line of JSON to standard output, everything
else to standard error. A lock keeps two processes from making the same run; the system releases it
with the process that holds it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from smallvit.core.config import Layer, resolve
from smallvit.core.console import start_logging
from smallvit.core.errors import SmallViTError, reason

OUT_OF_MEMORY = (
    "out of memory: set runtime.micro_batch under settings of the suite, which leaves the steps as "
    "they are, or run fewer at a time (--jobs)"
)
BUSY = 75  # exit code where another process makes the run: EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is told to make.

    Attributes:
        name: Name of the run, for messages.
        stage: Its stage.
        recipe: Its settings, plain.
        folder: Its folder.
        lock: File that is locked while it is made.
        log: File that its messages are added to.
        argv: Command line, for env.json.
        environ: Environment variables to set for it.
    """

    name: str
    stage: str
    recipe: dict[str, Any]
    folder: str
    lock: str
    log: str
    argv: Sequence[str] = ()
    environ: dict[str, str]

    def line(self) -> bytes:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        exit_code: Exit code of its process; negative is the signal that ended it.
        error: What went wrong, in one line; ``None`` if nothing did.
    """

    exit_code: int
    error: str | None = None

    @property
    def busy(self) -> bool:
        """Whether another process makes the run."""
        return self.exit_code == BUSY

    @property
    def stopped(self) -> bool:
        """Whether a signal asked it to stop, after saving what there was to save."""
        stops = (signal.SIGTERM, signal.SIGINT)
        return self.exit_code in {code for s in stops for code in (-s, 128 + s)}


def is_locked(lock: Path) -> bool:
    """Tell whether a process makes the run of a lock file."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def make_run(job: Job) -> Outcome:
    """Make the run of a job, or go on with it; every failure becomes one line.

    Args:
        job: What to make. Its lock is held meanwhile.
    """
    try:
        with FileLock(job.lock, timeout=0):
            # Imported late: who finds the lock taken has nothing to compute.
            from smallvit.runs.chain import complete_stage
            from smallvit.runs.config import Recipe, Stage

            recipe = resolve(Recipe, [Layer(source=job.name, values=job.recipe)])
            complete_stage(recipe, cast(Stage, job.stage), Path(job.folder), job.argv)
            return Outcome(exit_code=0)
    except Exception as error:
        return _outcome_of(error, job.log)


def _outcome_of(error: Exception, log: str) -> Outcome:
    if isinstance(error, Timeout):
        return Outcome(exit_code=BUSY)
    if isinstance(error, SmallViTError):
        return Outcome(exit_code=error.exit_code, error=str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Outcome(exit_code=1, error=OUT_OF_MEMORY)
    traceback.print_exception(error)
    fault = f"{type(error).__name__}: {reason(error)}"
    return Outcome(exit_code=1, error=f"a fault in smallvit ({fault}): see {log}")


def main() -> int:
    """Make the run that standard input names."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 1  # who started it is gone
    job = json.loads(line)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    start_logging()
    outcome = make_run(Job(**job))
    print(json.dumps(asdict(outcome)), file=report, flush=True)
    return outcome.exit_code


def _stop_with_parent() -> None:
    """Wait until standard input is closed, which nobody does but the system, then save and stop."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
