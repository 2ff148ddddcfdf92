"""Where the runs of a suite are made: on this machine, or as tasks of a Ray cluster."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from joblib import cpu_count

from smallvit.core.errors import ConfigError, explained, reason
from smallvit.leaderboard.node import Job, Outcome

LOOK_S = 0.05  # between two looks at whether a process has ended


class AbstractLauncher(ABC):
    """Makes runs, each in a process of its own, and tells how they ended.

    Attributes:
        started: What a run is that was started, for progress lines.
    """

    started: Literal["running", "queued"]

    @property
    def has_room(self) -> bool:
        """Whether another run may be started."""
        return True

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a run."""

    @abstractmethod
    def wait(self, timeout_s: float) -> Sequence[tuple[str, Outcome]]:
        """Return names and outcomes of runs that ended; wait at most so long for the first."""

    @abstractmethod
    def stop(self) -> Sequence[tuple[str, Outcome]]:
        """Let every run save and stop, and return how they ended."""


class LocalLauncher(AbstractLauncher):
    """Runs on this machine.

    Args:
        jobs: Runs at a time. With more than one the cores are shared among them.
    """

    started = "running"

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self.running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}

    @property
    def has_room(self) -> bool:
        """Whether another run may be started."""
        return len(self.running) < self.jobs

    def start(self, job: Job) -> None:
        """Start a process."""
        threads = {}
        if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            threads = {"OMP_NUM_THREADS": str(max(cpu_count() // self.jobs, 1))}
        self.running[job.name] = (job, start_process(job, threads))

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Outcome]]:
        """Look at the processes until one has ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = [
                name for name, (_, process) in self.running.items() if process.poll() is not None
            ]
            if ended or time.monotonic() >= deadline:
                return [(name, end_process(*self.running.pop(name))) for name in ended]
            time.sleep(LOOK_S)

    def stop(self) -> Sequence[tuple[str, Outcome]]:
        """Send SIGTERM once, which saves; a second one would end a process at once."""
        for _, process in self.running.values():
            process.terminate()
        outcomes = []
        while self.running:
            outcomes += self.wait(1.0)
        return outcomes


class RayLauncher(AbstractLauncher):
    """Runs as tasks of Ray: on the cluster that RAY_ADDRESS names or that is there, else here.

    All machines see the suite's folder under the same path.

    Args:
        num_cpus: Cores of a run.
        num_gpus: GPUs of a run; a part of one lets runs share it. ``None`` is one where the cluster
            has any.

    Raises:
        ConfigError: If Ray is not installed, or no run fits on the cluster.
    """

    started = "queued"  # Ray lets it wait until there is room

    def __init__(self, num_cpus: float = 1, num_gpus: float | None = None) -> None:
        with explained(
            lambda error: f"--launcher ray needs Ray ({error}): pip install 'smallvit[cluster]'",
            ImportError,
            into=ConfigError,
        ):
            self.ray: Any = importlib.import_module("ray")
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False)
        there = self.ray.cluster_resources()
        if num_gpus is None:
            num_gpus = 1 if there.get("GPU", 0) >= 1 else 0
        for kind, least in (("CPU", num_cpus), ("GPU", num_gpus)):
            if least > there.get(kind, 0):
                raise ConfigError(
                    f"a run asks for {least:g} {kind}, the Ray cluster has {there.get(kind, 0):g}: "
                    f"lower --node-{kind.lower()}s"
                )
        self.make = self.ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(run_job)
        self.running: dict[Any, Job] = {}
        self.stopping = False

    def start(self, job: Job) -> None:
        """Submit a task."""
        self.running[self.make.remote(job)] = job

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Outcome]]:
        """Ask Ray for tasks that have ended."""
        if not self.running:
            time.sleep(timeout_s)
            return []
        ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout_s)
        return [(self.running.pop(task).name, self._outcome(task)) for task in ended]

    def stop(self) -> Sequence[tuple[str, Outcome]]:
        """Cancel every task; a running one lets its process save."""
        self.stopping = True
        for task in self.running:
            self.ray.cancel(task)
        outcomes = []
        while self.running:
            outcomes += self.wait(1.0)
        return outcomes

    def _outcome(self, task: Any) -> Outcome:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            # Ray cancels again where that takes more than two seconds, which can end the worker.
            if self.stopping or isinstance(error, self.ray.exceptions.TaskCancelledError):
                return Outcome(exit_code=128 + signal.SIGTERM)
            return Outcome(exit_code=1, error=f"its Ray task was lost: {reason(error)[:200]}")


def run_job(job: Job) -> Outcome:
    """Make a run in a process of its own and wait for it; interrupted, the run saves first."""
    process = start_process(job, {})
    try:
        while process.poll() is None:  # ray.cancel does not reach a thread that waits in the system
            time.sleep(LOOK_S)
    finally:
        process.terminate()  # where it has not ended
        process.wait()
    return end_process(job, process)


def start_process(job: Job, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a run.

    It is in a session of its own: Ctrl-C reaches the suite alone, which then stops it once.

    Args:
        job: What to make.
        environ: More environment variables to set.
    """
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "smallvit.leaderboard.node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={**os.environ, **job.environ, **environ},
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already: its exit code says so
        process.stdin.write(job.line())
        process.stdin.flush()
    return process


def end_process(job: Job, process: subprocess.Popen[bytes]) -> Outcome:
    """Return the outcome of a process that has ended."""
    report, _ = process.communicate()
    if report.endswith(b"\n"):
        return Outcome(**json.loads(report))
    # It was ended before it could say why.
    return Outcome(exit_code=process.returncode, error=_describe(process.returncode, job.log))


def _describe(returncode: int, log: str) -> str:
    if returncode == -signal.SIGKILL:
        return f"killed (SIGKILL), as the system does for lack of memory: see {log}"
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}: see {log}"
    return f"ended with exit code {returncode}: see {log}"
