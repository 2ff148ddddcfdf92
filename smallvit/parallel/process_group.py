"""Joining the processes that torchrun started, and ending well where one of them is lost.

A process that is killed closes its connections, so a message to it fails in the others at once;
torchrun then ends them all, and its report names the lost one. One that closed nothing, as when a
machine loses its power, ends the others by the time-out of a message.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from smallvit.core.errors import (
    CollapsedError,
    DivergedError,
    InterruptedRunError,
    ProcessLostError,
)
from smallvit.parallel import processes
from smallvit.parallel.launch import launched

# Of one message between the processes: the first may pack data or score while others wait.
TIMEOUT = timedelta(hours=2)


@contextmanager
def process_group(cuda: bool) -> Iterator[None]:
    """Let the processes that torchrun started train together inside; alone, do nothing.

    Args:
        cuda: Whether they compute on CUDA devices, and speak by NCCL; else by gloo.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        with raising_process_lost():
            yield
    except (InterruptedRunError, DivergedError, CollapsedError) as error:
        error.said = not processes.is_first()  # all of them end so, and one line is enough
        raise
    finally:
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
def raising_process_lost() -> Iterator[None]:
    """Say that another process is lost where a message to it failed.

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
        raise ProcessLostError(
            f"process {processes.number()} of {processes.count()} lost the connection to another: "
            "see its own lines and torchrun's report for why, and continue with --resume"
        ) from error
