"""Unpack archives without trusting them: all or nothing, within bounds, never outside the folder.

Folders are built in a hidden sibling of their target and renamed when whole, so that a process that
is killed leaves no half target behind.
"""

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

from smallvit.core.errors import DataError

# Each bound is several times what the largest set known here takes, and stops an archive made to
# fill the disk. Checksums guard the official files; these guard whatever else is handed in.
MAX_MEMBERS = 4_000_000  # Tiny-ImageNet-C has about 1 million
MAX_BYTES = 32 * 2**30  # CIFAR-100-C takes 2.9 GB, the largest
MAX_RATIO = 20  # of unpacked to packed; idx files reach 2, JPEG and PNG files 1.1
ALWAYS_ALLOWED = 256 * 2**20  # bytes that harm nobody, whatever the ratio

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".gz")
Progress = Callable[[int, int], None]  # (packed bytes read, packed bytes in all)

_CHUNK = 2**20
_TAR_BUFFER = 2**16  # tarfile copies what is left of it on each read
_BLOCK = 4096  # bytes that a file takes on disk at least
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,  # zipfile: a method of compression that it lacks
)
_ZIP_ENCRYPTED = 0x1


def unpack(archive: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Unpack an archive so that it becomes ``target``.

    If the archive has a top-level entry of ``target``'s name, that entry becomes ``target``, else
    all that it holds; a single compressed file (``.gz``) becomes the file ``target``. A target that
    exists is replaced at the very end. Modes and times in the archive are not applied, and macOS's
    resource forks are left out. The caller sees to it that no other process unpacks to the same
    target.

    Args:
        archive: File ending in one of ``SUFFIXES``.
        target: Folder or file to make.
        progress: Called now and then.

    Raises:
        DataError: If the archive is broken, holds what does not belong in a dataset (links, paths
            that lead outside), passes a bound, or the disk has not enough room.
    """
    name = archive.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{archive} is no archive known here: it must end in {', '.join(SUFFIXES)}")
    try:
        with staging_folder(target) as staging:
            unpacked = staging / "unpacked"
            budget = _Budget(archive, progress or (lambda done, total: None))
            if name.endswith(".zip"):
                _unpack_zip(archive, unpacked, budget)
            elif name.endswith(".gz") and not name.endswith(".tar.gz"):
                _unpack_gzip(archive, unpacked, budget)
            else:
                _unpack_tar(archive, unpacked, budget)
            inner = unpacked / target.name
            move_into_place(inner if inner.exists() else unpacked, target, staging)
    except _BROKEN as error:
        raise _broken(archive, error) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's word for corrupt data
            raise _broken(archive, error) from error
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"the disk of {target.parent} became full while {archive} was unpacked: make room"
            ) from error
        raise DataError(
            f"cannot unpack {archive} to {target} ({error.strerror}): make that folder writable, "
            "or set SMALLVIT_DATA_DIR to another"
        ) from error


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
    existed = os.path.lexists(target)
    if existed:
        target.rename(old)
    try:
        path.rename(target)
    except BaseException:
        if existed:
            old.rename(target)
        raise


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


def _broken(archive: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{archive} is broken ({why}): remove it and fetch it again")


class _Budget:
    """What one archive may still unpack to, counted as it is written: headers can lie."""

    def __init__(self, archive: Path, progress: Progress) -> None:
        self.archive = archive
        self.packed = archive.stat().st_size
        self.limit = min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_RATIO * self.packed))
        self.member = archive.name
        self._bytes = 0
        self._members = 0
        self._progress = progress
        self._reported = 0

    def enter(self, member: str) -> None:
        """Count one member and keep its name for messages."""
        self.member = member
        self._members += 1
        if self._members > MAX_MEMBERS:
            self.refuse(f"is one of more than {MAX_MEMBERS:,} members")

    def spend(self, num_bytes: int) -> None:
        """Count unpacked bytes."""
        self._bytes += num_bytes
        if self._bytes > self.limit:
            self.refuse_size()

    def refuse_size(self) -> NoReturn:
        """Say that the archive unpacks to too much."""
        self.refuse(
            f"unpacks to more than the {self.limit:,} bytes that an archive of {self.packed:,} may"
        )

    def refuse(self, why: str) -> NoReturn:
        """Say why the current member, and with it the archive, is not unpacked."""
        raise DataError(
            f"{self.archive}: member {self.member!r} {why}: nothing was unpacked; get the official "
            "archive"
        )

    def report(self, done: int) -> None:
        """Tell the progress, but not for each of many small files."""
        if done - self._reported >= _CHUNK or done == self.packed > self._reported:
            self._reported = done
            self._progress(done, self.packed)


@runtime_checkable
class _Stream(Protocol):
    """What can be read."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes."""
        ...


class _Bounded(io.BufferedIOBase):
    """A stream that counts what is read against the budget."""

    def __init__(self, stream: _Stream, budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes."""
        data = self._stream.read(-1 if size is None else size)
        self._budget.spend(len(data))
        return data


class _Folder:
    """The folder that members are written to, each name checked."""

    def __init__(self, root: Path, budget: _Budget) -> None:
        root.mkdir()
        self._root = root
        self._budget = budget
        self._folders = {""}
        self._files: set[str] = set()

    def add_folder(self, name: str) -> None:
        """Make the folder that a member stands for."""
        path = self._path(name)
        if path is not None:
            self._make(path)

    def add_file(self, name: str, stream: _Stream) -> None:
        """Write the file that a member stands for; of two of one name, the last stays."""
        path = self._path(name)
        if path is None:
            return
        if path in self._folders:
            self._budget.refuse("is both a file and a folder")
        self._make(path.rpartition("/")[0])
        self._files.add(path)
        with (self._root / path).open("wb") as file:
            while chunk := stream.read(_CHUNK):
                file.write(chunk)

    def finish(self) -> None:
        """Check that there was anything."""
        if not self._files:
            raise DataError(f"{self._budget.archive} holds no files: get the official archive")

    def _make(self, path: str) -> None:
        if path in self._folders:
            return
        if path in self._files:
            self._budget.refuse("is both a file and a folder")
        self._make(path.rpartition("/")[0])
        (self._root / path).mkdir()
        self._folders.add(path)

    def _path(self, name: str) -> str | None:
        """Return the checked path below the folder; ``None`` for what is left out."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/"):
            self._budget.refuse("has an absolute path")
        if ".." in parts:
            self._budget.refuse("leads outside by '..'")
        if "\\" in name or "\0" in name or any(re.match("[A-Za-z]:", part) for part in parts):
            self._budget.refuse("has a backslash, a drive letter or a NUL in its path")
        # macOS's resource forks and folder settings
        junk = "__MACOSX" in parts or (parts and parts[-1].startswith(("._", ".DS_Store")))
        return "/".join(parts) if parts and not junk else None


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        if sum(member.file_size for member in members) > budget.limit:
            budget.refuse_size()
        on_disk = sum(-(-member.file_size // _BLOCK) * _BLOCK for member in members)
        need_room(folder.parent, on_disk, f"unpacking {archive.name}")
        out = _Folder(folder, budget)
        done = 0
        for member in members:
            name = member.orig_filename  # ``filename`` is already altered
            budget.enter(name)
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where no Unix made the archive
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                budget.refuse("is a link or a device")
            if member.flag_bits & _ZIP_ENCRYPTED:
                budget.refuse("is encrypted")
            if name.endswith("/"):
                out.add_folder(name)
            else:
                with packed.open(member) as stream:
                    out.add_file(name, _Bounded(stream, budget))
            done += member.compress_size
            budget.report(done)
        out.finish()
    budget.report(budget.packed)


class _StrictTarInfo(tarfile.TarInfo):
    """A header that must be one: tarfile takes a corrupt header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        """Read a header; zeros alone end an archive."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(str(error)) from error


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    # Compressed files take at least as much room when unpacked.
    need_room(folder.parent, budget.packed, f"unpacking {archive.name}")
    out = _Folder(folder, budget)
    with archive.open("rb") as raw, _decompressed(archive.name, raw) as plain:
        stream = _Bounded(plain, budget)
        with tarfile.open(
            fileobj=stream, mode="r|", bufsize=_TAR_BUFFER, tarinfo=_StrictTarInfo
        ) as packed:
            while (member := packed.next()) is not None:
                # Else tarfile keeps each header, 1 kB a file.
                packed.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                budget.enter(member.name)
                _add_tar_member(packed, member, out, budget)
                budget.report(raw.tell())
        while stream.read(_CHUNK):  # the checksum comes after the last member
            pass
        out.finish()
    budget.report(budget.packed)


def _add_tar_member(
    packed: tarfile.TarFile, member: tarfile.TarInfo, out: _Folder, budget: _Budget
) -> None:
    if member.isdir():
        out.add_folder(member.name)
        return
    if member.issym() or member.islnk():
        budget.refuse(f"is a link to {member.linkname!r}")
    if not member.isreg() or member.issparse():
        budget.refuse("is neither a plain file nor a folder")
    stream = packed.extractfile(member)
    assert stream is not None
    out.add_file(member.name, stream)


def _decompressed(name: str, raw: io.BufferedReader) -> io.BufferedIOBase:
    name = name.lower()
    if name.endswith("gz"):
        return gzip.GzipFile(fileobj=raw)
    if name.endswith("bz2"):
        return bz2.BZ2File(raw)
    if name.endswith("xz"):
        return lzma.LZMAFile(raw)
    return raw


def _unpack_gzip(archive: Path, path: Path, budget: _Budget) -> None:
    if budget.packed == 0:
        raise EOFError("the file is empty")  # gzip takes it for nothing, compressed
    need_room(path.parent, budget.packed, f"unpacking {archive.name}")
    with archive.open("rb") as raw, gzip.GzipFile(fileobj=raw) as plain, path.open("wb") as file:
        stream = _Bounded(plain, budget)
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
            budget.report(raw.tell())
    budget.report(budget.packed)
