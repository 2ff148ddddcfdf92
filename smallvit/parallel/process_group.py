"""Joining the processes that torchrun started, and telling which one was lost.

A process that is killed leaves the others waiting for it. So each says every few seconds that it is
there, on a connection of its own to torchrun's store, and looks for the others there.
"""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from smallvit.core.errors import (
    CollapsedError,
    DivergedError,
    InterruptedRunError,
    ProcessLostError,
)
from smallvit.parallel import processes
from smallvit.parallel.launch import launched

logger = logging.getLogger("smallvit")
BEAT_S = 2.0
SILENCE_S = 20.0  # after which a process counts as lost
GRACE_S = 10.0  # in a message to a lost process, in which the main thread may say so itself
LIMIT_S = 40.0  # without it, in work of its own
# Of one message between the processes: the first may pack data or score while others wait.
TIMEOUT = timedelta(hours=2)
STORE = "torchrun's store"
_beats: "Beats | None" = None


@contextmanager
def process_group(cuda: bool) -> Iterator[None]:
    """Let the processes that torchrun started train together inside; alone, do nothing.

    Args:
        cuda: Whether they compute on CUDA devices, and speak by NCCL; else by gloo.
    """
    global _beats
    if launched() == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    _beats = Beats()
    try:
        with naming_lost_process():
            yield
    except (InterruptedRunError, DivergedError, CollapsedError) as error:
        error.said = not processes.is_first()  # all of them end so, and one line is enough
        raise
    finally:
        _beats.leave()
        dist.destroy_process_group()


def is_lost_connection(error: Exception) -> bool:
    """Tell whether a message between processes failed."""
    if processes.count() == 1:
        return False
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Say which process is lost where a message to it failed.

    Raises:
        ProcessLostError: In place of the failure of a message.
    """
    try:
        yield
    except Exception as error:
        if not is_lost_connection(error):
            raise
        # torchrun tells all others to end as soon as one is gone; what is left is short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        assert _beats is not None
        lost = _beats.find_lost(SILENCE_S + 2 * BEAT_S)
        what = ", ".join(lost) if lost else "the connection to another process"
        raise ProcessLostError(
            f"lost {what}: see its own lines for why, and continue with --resume"
        ) from error


class Beats:
    """Says that this process is there, and notices when another one is not."""

    def __init__(self) -> None:
        self.rank, self.count = processes.number(), processes.count()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, is_master=False, timeout=timedelta(seconds=60)
        )
        self.store.set(f"smallvit/who/{self.rank}", f"{platform.node()} {os.getpid()}")
        self.store.set(f"smallvit/left/{self.rank}", "0")
        self.seen: dict[int, tuple[int, float]] = {}
        self.lock = threading.Lock()
        self.gone = threading.Event()
        self._look()
        processes.any_of(False)  # all have said who they are
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """Stop, and let the others know that this is no accident."""
        self.gone.set()
        self.thread.join()
        try:
            self.store.set(f"smallvit/left/{self.rank}", "1")
        except (dist.DistError, RuntimeError):
            return  # the store is gone with its process, and so is who would read it

    def find_lost(self, within_s: float) -> list[str]:
        """Return the processes that are gone, once there is one."""
        end = time.monotonic() + within_s
        while True:
            lost = self._look()
            if lost or time.monotonic() > end:
                return lost
            time.sleep(0.2)

    def _look(self) -> list[str]:
        """Say that this process is there; describe those that are not."""
        lost = []
        with self.lock:
            try:
                self.store.add(f"smallvit/beat/{self.rank}", 1)
                now = time.monotonic()
                for other in range(self.count):
                    if other == self.rank or self._get(f"left/{other}") == "1":
                        continue
                    beat = self.store.add(f"smallvit/beat/{other}", 0)
                    if other not in self.seen or self.seen[other][0] != beat:
                        self.seen[other] = (beat, now)
                    host, _, pid = self._get(f"who/{other}").partition(" ")
                    here = host == platform.node()
                    if now - self.seen[other][1] > SILENCE_S or (here and _has_ended(int(pid))):
                        lost.append(f"process {other} of {self.count} ({host}, pid {pid})")
            except (dist.DistError, RuntimeError):
                return [STORE]
        return lost

    def _get(self, key: str) -> str:
        if not self.store.check([f"smallvit/{key}"]):
            return "0"
        return self.store.get(f"smallvit/{key}").decode()

    def _run(self) -> None:
        missed = None
        while not self.gone.wait(BEAT_S):
            lost, now = self._look(), time.monotonic()
            if not lost:
                missed = None
                continue
            missed = now if missed is None else missed
            if lost == [STORE]:
                # The others are there: all stop after a step, with the state saved.
                os.kill(os.getpid(), signal.SIGTERM)
                if self.gone.wait(LIMIT_S):
                    return
            elif processes.waiting_s() < GRACE_S and now - missed < LIMIT_S:
                continue
            # The main thread waits for a message that never comes.
            logger.error(
                "smallvit: process %d lost %s: continue with --resume", self.rank, ", ".join(lost)
            )
            os._exit(1)


def _has_ended(pid: int) -> bool:
    """Tell whether a process of this machine is gone, or dead and not yet buried."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return Path("/proc/self/stat").exists()
    return state in "ZX"
