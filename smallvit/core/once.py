"""What a command says once, however many of its stages come upon it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger("smallvit")
_lines: ContextVar[set[str] | None] = ContextVar("lines", default=None)


@contextmanager
def saying_once() -> Iterator[None]:
    """Say each line of ``say_once`` one time in all that is done within; the outermost counts."""
    if _lines.get() is not None:
        yield
        return
    token = _lines.set(set())
    try:
        yield
    finally:
        _lines.reset(token)


def say_once(level: int, line: str) -> None:
    """Log a line, unless it was said within ``saying_once`` before."""
    lines = _lines.get()
    if lines is None or line not in lines:
        logger.log(level, "%s", line)
    if lines is not None:
        lines.add(line)
