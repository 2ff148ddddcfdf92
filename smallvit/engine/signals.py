"""Signals that ask a run to stop: noted, so that it ends between two steps with its state saved."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from smallvit.core.errors import InterruptedRunError

ONE_STOP_S = 1.0  # within which signals are one


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT for the loop; one that comes a second later ends the process at once.

    ``timeout`` and schedulers send a signal to a process and to its group, so that it comes twice.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals reach the main thread only
        return
    since = math.inf

    def note(number: int, frame: object) -> None:
        nonlocal since
        if received and time.monotonic() - since > ONE_STOP_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        since = min(since, time.monotonic())
        received.append(number)

    previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a run that is ending anyway
                signal.signal(number, handler)


def stopped(received: Sequence[int], where: str) -> InterruptedRunError:
    """Return the error of a run that ends as it was asked to.

    Args:
        received: Signals that were noted; none where another process was asked.
        where: How far it is, what is saved and how to go on.
    """
    number = received[0] if received else signal.SIGTERM
    return InterruptedRunError(number, f"stopped by {signal.Signals(number).name} {where}")
