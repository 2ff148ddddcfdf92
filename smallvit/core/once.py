"""What a command says once, however many of its stages come upon it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger("smallvit")
_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def saying_once() -> Iterator[None]:
    """Say each line of ``say_once`` one time in all that is done within; the outermost counts."""
    if _said.get() is not None:
        yield
        return
    token = _said.set(set())
    try:
        yield
    finally:
        _said.reset(token)


def say_once(level: int, line: str) -> None:
    """Log a line, unless it was said within ``saying_once`` before."""
    said = _said.get()
    if said is None or line not in said:
        logger.log(level, "%s", line)
    if said is not None:
        said.add(line)
