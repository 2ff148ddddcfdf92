"""Standard output and error that outlast their reader, their encoding and their absence."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from smallvit.core.console import LEAST_WIDTH
from smallvit.core.errors import SmallViTError

# The reader is gone: a closed pipe (on Windows EINVAL), a terminal that hung up, a closed file.
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.EINVAL)


class LastingStream:
    """A text stream whose reader may leave, as ``head`` does, and whose encoding may lack letters.

    What nobody reads is dropped, so that training goes on after its terminal has closed. Letters
    that the encoding lacks are written as escapes.

    Args:
        stream: The stream below.
        required: Whether a full disk ends the command, as it does for what was asked for.
    """

    def __init__(self, stream: Any, *, required: bool) -> None:
        self.stream = stream
        self.required = required
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what the encoding has, and the rest as escapes."""

        def write() -> None:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

        self._unless_lost(write)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._unless_lost(self.stream.flush)

    def _unless_lost(self, work: Callable[[], object]) -> None:
        """Do what needs the reader, until there is none."""
        if self.lost:
            return
        try:
            work()
        except (OSError, ValueError) as error:  # ValueError: the file was closed
            self.lost = True
            if not self._discards_the_rest():
                return
            if self.required and isinstance(error, OSError) and error.errno not in GONE:
                raise SmallViTError(f"cannot write the output ({error.strerror})") from error

    def _discards_the_rest(self) -> bool:
        """Let Python write the rest of its own buffer, at its end, to nowhere; tell if that did."""
        if all(self.stream is not own for own in (sys.__stdout__, sys.__stderr__)):
            return True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self.stream.fileno())
        except (OSError, ValueError):
            return False
        finally:
            os.close(nowhere)
        return True


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let standard output and error outlast their reader; where they are closed, open them.

    A COLUMNS that no table can have, such as 0, is as if not set.
    """
    before = sys.stdout, sys.stderr
    columns = os.environ.get("COLUMNS", "")
    unfit = columns.isdigit() and int(columns) < LEAST_WIDTH
    if unfit:
        del os.environ["COLUMNS"]
    sys.stdout = _lasting(sys.stdout, required=True)
    sys.stderr = _lasting(sys.stderr, required=False)
    try:
        yield
        sys.stdout.flush()
    finally:
        for opened, stream in zip((sys.stdout, sys.stderr), before, strict=True):
            if stream is None:
                opened.close()
        sys.stdout, sys.stderr = before
        if unfit:
            os.environ["COLUMNS"] = columns


def _lasting(stream: Any, *, required: bool) -> Any:
    if isinstance(stream, LastingStream):
        return stream
    if stream is None:  # the process was started with it closed
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    return LastingStream(stream, required=required)
