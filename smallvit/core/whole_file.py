"""Writing a file whole or not at all."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from smallvit.core.errors import DataError

REMEDY = "free some room or make it writable"


@contextmanager
def replacing(
    path: Path, remedy: str = REMEDY, *, keep: Path | None = None, shared: bool = False
) -> Iterator[BinaryIO]:
    """Open a file beside ``path``; once written it is synced and renamed into place.

    Args:
        path: Where the file goes.
        remedy: What to do if it cannot be written, for the message.
        keep: Where what was at ``path`` goes, in the same folder; ``None`` drops it. One of the
            two is whole at every moment.
        shared: Whether other processes may write the same file: each then has one beside it of its
            own, and the last that is done wins.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    partial = path.with_suffix(".part")
    if shared:
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    file: _Writer | None = None
    try:
        file = _Writer(io.FileIO(partial, "wb"))
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        with suppress(OSError):  # a read-only file system refuses even what is not there
            partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else file.error if file is not None else None
        if cause is None:
            raise
        if cause.errno == errno.ENOENT:
            remedy = "its folder is gone: repeat the command, or --resume the run where it is now"
        raise DataError(f"cannot write {path} ({cause.strerror}): {remedy}") from error


class _Writer(io.BufferedWriter):
    """A file that remembers why a write failed: writers in C++ report another error in its place.

    ``torch.save`` on a full disk raises ``RuntimeError: unexpected pos``.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, and note the error if there is one."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def write_text(path: Path, text: str, remedy: str = REMEDY) -> None:
    """Replace a file by a text in UTF-8, whole; of several processes that do, the last one wins.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    with replacing(path, remedy, shared=True) as file:
        file.write(text.encode())


def writable(text: str) -> str:
    """Return a text with escapes for what is no Unicode, as names of files may hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
