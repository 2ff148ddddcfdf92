"""The terminal: one console for progress and log lines alike."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from smallvit.core.errors import ConfigError, suggest

LEAST_WIDTH = 20  # of a terminal; what says less, as COLUMNS=0 does, cannot be meant
console = Console(stderr=True)
if console.width < LEAST_WIDTH:
    console.width = 80
logger = logging.getLogger("smallvit")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LINE_S = 10.0  # between two lines of progress where there is no bar
ItemT = TypeVar("ItemT")


def say(text: str, to: Console = console) -> None:
    """Print text as it is: no markup, no colours, no line broken, so that paths can be copied.

    Args:
        text: One line or several.
        to: Where; by default standard error.
    """
    to.print(text, markup=False, highlight=False, soft_wrap=True)


def format_duration(time_s: float, *, decimals: int = 0) -> str:
    """Write seconds as a person reads them: ``12 s``, ``4 min 05 s``, ``2 h 05 min``.

    Args:
        time_s: Seconds.
        decimals: Digits behind the point below a minute.
    """
    if round(time_s, decimals) < 60:
        return f"{time_s:.{decimals}f} s"
    minutes, seconds = divmod(round(time_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(time_s / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def open_bars() -> Progress:
    """Return bars of how far work is, for a terminal; elsewhere they show nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[ItemT], what: str, total: int) -> Iterator[ItemT]:
    """Yield items and show how far they are: a bar on a terminal, elsewhere a line now and then.

    Args:
        items: What is worked through.
        what: What is done with them.
        total: Number of items.
    """
    with open_bars() as bars:
        task = bars.add_task(what, total=total)
        start = last = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            bars.update(task, completed=number)
            now = time.monotonic()
            if not console.is_terminal and now - last > LINE_S and number < total:
                left = format_duration((now - start) / number * (total - number))
                logger.info("%s: %.0f %%, %s left", what, 100 * number / total, left)
                last = now


class NotebookLine(logging.Handler):
    """Shows the last message alone, in one line that is written over; warnings stay."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message over the one before it."""
        text = self.format(record)
        stays = record.levelno >= logging.WARNING
        sys.stdout.write(f"\r{text.ljust(self.width)}" + ("\n" if stays else ""))
        sys.stdout.flush()
        self.width = 0 if stays else len(text)

    def close(self) -> None:
        """End the line."""
        if self.width:
            sys.stdout.write("\n")
        super().close()


@contextmanager
def kept_logging() -> Iterator[None]:
    """Put log and warnings of the process back at the end."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    quiet, showwarning = console.quiet, warnings.showwarning
    try:
        yield
    finally:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
        console.quiet, warnings.showwarning = quiet, showwarning


@contextmanager
def showing_progress(*, verbose: bool) -> Iterator[None]:
    """Show what the work of a Python function says, as the command line does.

    Handlers that the program has given to the logger ``smallvit`` are left in charge.

    Args:
        verbose: Show progress; else warnings alone.

    Raises:
        ConfigError: If SMALLVIT_LOG_LEVEL is unknown.
    """
    with kept_logging():
        if not logger.handlers:
            start_logging()
        if not verbose:
            console.quiet = True  # no bars
            logger.setLevel(max(logger.level, logging.WARNING))
        yield


def start_logging() -> None:
    """Send log lines and Python warnings to the terminal, at the level of SMALLVIT_LOG_LEVEL.

    Raises:
        ConfigError: If that level is unknown.
    """
    level = (os.environ.get("SMALLVIT_LOG_LEVEL") or "INFO").upper()
    if level not in LEVELS:
        raise ConfigError(f"SMALLVIT_LOG_LEVEL is {level!r}{suggest(level, LEVELS)}")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    if console.is_jupyter:
        handler: logging.Handler = NotebookLine()
    elif console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    else:
        handler = logging.StreamHandler()
    logger.addHandler(handler)
    # Of the processes that torchrun started, the first one speaks.
    first = "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"
    logger.setLevel(level if first else "ERROR")
    console.quiet = not first
    logger.propagate = False
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    logger.warning("warning: %s", message)
