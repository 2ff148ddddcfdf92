"""Unpack official archives, verified by their MD5, all or nothing.

Folders are built in a hidden sibling of their target and renamed when whole, so that a process that
is killed leaves no half target behind.
"""

import errno
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from smallvit.core.errors import DataError, explained, reason

Progress = Callable[[int, int], None]  # (packed bytes read, packed bytes in all)

_CHUNK = 2**20
_BLOCK = 4096  # bytes that a file takes up at least
_ERRORS = (  # of what is broken, and of the system
    OSError,
    tarfile.TarError,  # what the data filter refuses, too
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,  # zipfile: a method of compression that it lacks
)


def unpack(archive: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Unpack an archive so that it becomes ``target``.

    If the archive has a top-level entry of ``target``'s name, that entry becomes ``target``, else
    all that it holds; a single compressed file (``.gz``) becomes the file ``target``. A target that
    exists is replaced at the very end. macOS's resource forks are left out. The caller has verified
    the archive's checksum, and sees to it that no other process unpacks to the same target.

    Args:
        archive: A file ``.zip`` or ``.gz``; a tar of any compression under every other name.
        target: Folder or file to make.
        progress: Called now and then.

    Raises:
        DataError: If the archive is broken, a member of it would lie outside the target, or the
            disk has not enough room.
    """
    name, size = archive.name.lower(), archive.stat().st_size
    tell = _rarely(progress or (lambda done, total: None), size)

    def explain(error: Exception) -> str:
        number = getattr(error, "errno", None)
        if number is None:  # gzip and bz2 raise an OSError without one for corrupt data
            return f"{archive} is broken ({reason(error)}): remove it and fetch it again"
        if number == errno.ENOSPC:
            return (
                f"the disk of {target.parent} became full while {archive} was unpacked: make room"
            )
        return (
            f"cannot unpack {archive} to {target} ({os.strerror(number)}): make that folder "
            "writable, or set SMALLVIT_DATA_DIR to another"
        )

    with (
        explained(explain, *_ERRORS),
        staging_folder(target) as staging,
        archive.open("rb") as packed,
    ):
        unpacked = staging / "unpacked"
        if name.endswith(".zip"):
            _unpack_zip(packed, unpacked, tell)
        else:
            # Compressed files take at least as much room when unpacked.
            need_room(staging, size, f"unpacking {archive.name}")
            alone = name.endswith(".gz") and not name.endswith(".tar.gz")
            (_unpack_gzip if alone else _unpack_tar)(packed, unpacked, tell)
        tell(size)
        inner = unpacked / target.name
        move_into_place(inner if inner.exists() else unpacked, target, staging)


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make an empty hidden folder beside ``target``; remove it with what it holds at the end.

    Its name is fixed, so that what a killed process left is removed by the next.
    """
    folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(path: Path, target: Path, staging: Path) -> None:
    """Rename ``path`` to ``target``; one that exists goes to ``staging``, to be removed there."""
    old = staging / "old"
    with ExitStack() as undo:
        if os.path.lexists(target):
            target.rename(old)
            undo.callback(old.rename, target)
        path.rename(target)
        undo.pop_all()


def need_room(folder: Path, needed: int, purpose: str) -> None:
    """Check that the disk of ``folder`` has room.

    Args:
        folder: Where the bytes will go.
        needed: How many.
        purpose: What for, for the message.

    Raises:
        DataError: If it has not; the message gives both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{purpose} needs {needed / 1e6:,.1f} MB in {folder}, {free / 1e6:,.1f} MB are free: "
            "make room or set SMALLVIT_DATA_DIR to another disk"
        )


def _rarely(progress: Progress, total: int) -> Callable[[int], None]:
    """Return what tells the progress, but not for each of many small files."""
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        if done - told >= _CHUNK or done == total > told:
            told = done
            progress(done, total)

    return tell


def _is_wanted(name: str) -> bool:
    """Tell whether a member is none of macOS's resource forks or folder settings.

    Raises:
        tarfile.ExtractError: If it is wanted and would lie outside the target.
    """
    path = PurePosixPath(name)
    if "__MACOSX" in path.parts or path.name.startswith(("._", ".DS_Store")):
        return False
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.ExtractError(f"{name} would lie outside of the folder")
    return True


def _unpack_zip(packed: BinaryIO, folder: Path, tell: Callable[[int], None]) -> None:
    folder.mkdir()
    with zipfile.ZipFile(packed) as archive:
        members = archive.infolist()
        blocks = (-(-member.file_size // _BLOCK) for member in members)
        need_room(folder.parent, _BLOCK * sum(blocks), f"unpacking {Path(packed.name).name}")
        done = 0
        for member in members:
            if _is_wanted(member.filename):
                archive.extract(member, folder)
            done += member.compress_size
            tell(done)


def _unpack_tar(packed: BinaryIO, folder: Path, tell: Callable[[int], None]) -> None:
    folder.mkdir()
    with tarfile.open(fileobj=packed, mode="r|*") as archive:
        # By name since Python before 3.11.4 has none, and takes no argument for it.
        filtered = archive.extraction_filter = getattr(tarfile, "data_filter", None)
        while (member := archive.next()) is not None:
            # Else tarfile keeps each header, 1 kB a file.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if _is_wanted(member.name):
                if filtered is None and not (member.isreg() or member.isdir()):
                    raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
                archive.extract(member, folder)
            tell(packed.tell())


def _unpack_gzip(packed: BinaryIO, path: Path, tell: Callable[[int], None]) -> None:
    with gzip.open(packed) as plain, path.open("wb") as file:
        while chunk := plain.read(_CHUNK):
            file.write(chunk)
            tell(packed.tell())
