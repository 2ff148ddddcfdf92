"""Writing a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from smallvit.core.errors import DataError


@contextmanager
def replacing(path: Path, remedy: str) -> Iterator[BinaryIO]:
    """Open a file beside ``path``; once written it is synced and renamed into place.

    Args:
        path: Where the file goes.
        remedy: What to do if it cannot be written, for the message.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    partial = path.with_suffix(".part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path} ({error.strerror}): {remedy}") from error
