"""Bring the official files of a dataset into the data folder: by hand, by mirror, once.

A file is downloaded to ``NAME.part`` and renamed when its length and checksum are right, so that an
interrupted download goes on where it stopped, and nothing unverified is ever unpacked.
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from smallvit import __version__
from smallvit.core.errors import DataError, explained, reason
from smallvit.data.files.file_kinds import HTML
from smallvit.data.files.registry import DatasetSpec, RemoteFile
from smallvit.data.files.unpack import move_into_place, need_room, staging_folder, unpack

FetchProgress = Callable[[str, int, int | None], None]  # (what, bytes done, bytes in all)

TIMEOUT_S = 30.0
MAX_FAILURES = 4  # connections in a row to one address that bring next to nothing
BACK_OFF_S = 1.0  # after the first failure; grows with each
OR_UNPACKED = "give that one, or a folder of its unpacked content, which is not verified"
_ENOUGH = 2**20  # bytes that make a connection worth another
_CHUNK = 2**20
_BUSY = {429, 500, 502, 503, 504}  # answers of a server that may serve the file a little later

logger = logging.getLogger("smallvit")


class _AddressError(Exception):
    """Why an address cannot be used; the next one is tried."""


class _AgainError(Exception):
    """Why the same address is asked again: it was busy, or what arrived is not the whole."""


def fetch_dataset(
    spec: DatasetSpec,
    data_dir: Path,
    *,
    origin: Path | None = None,
    offline: bool = False,
    progress: FetchProgress | None = None,
) -> None:
    """Make the files of a dataset exist below the data folder.

    What is there is left alone. An archive that lies in the folder is verified and unpacked; others
    are downloaded, and kept. Of several processes one does the work and the others wait.

    Args:
        spec: The dataset.
        data_dir: The data folder.
        origin: What the user has already: an official archive, a folder of them, or the unpacked
            data. It is copied.
        offline: Refuse to download.
        progress: Called now and then.

    Raises:
        DataError: If a file is missing and cannot be had, or is not the official one; the message
            says what to do by hand. Also if ``origin`` cannot be read or links to itself.
    """
    if origin is not None and not origin.exists():
        raise DataError(f"no file or folder at {origin}: --from takes an archive or a folder")
    if is_present(spec, data_dir):
        if origin is not None:
            logger.info("nothing of %s is missing: %s was not used", spec.name, origin)
        return
    report = progress or (lambda what, done, total: None)

    def explain(error: OSError) -> str:
        why = error.strerror or reason(error)
        if origin is not None and _is_of(error, origin, data_dir):
            return (
                f"cannot read {error.filename} in --from {origin} ({why}): mend or remove it there"
            )
        return (
            f"cannot bring {spec.name} to {data_dir} ({why}): set SMALLVIT_DATA_DIR to a folder "
            "with room that can be written"
        )

    with explained(explain):
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{spec.name}.lock"):
            # Another process may have done it while this one waited.
            if origin is not None and not is_present(spec, data_dir):
                _take(spec, data_dir, origin)
            if spec.hub is not None and not is_present(spec, data_dir):
                # Imported late: only one dataset needs the client.
                from smallvit.data.files.hub import fetch_hub

                fetch_hub(spec.hub, data_dir / hub_folder(spec.hub), offline=offline)
            _fetch_files(spec, data_dir, report, offline=offline)


def is_present(spec: DatasetSpec, data_dir: Path) -> bool:
    """Tell whether all that the reader of a dataset needs is below the data folder."""
    return all(_is_there(data_dir / target) for target in targets(spec))


def targets(spec: DatasetSpec) -> list[str]:
    """Return what the reader of a dataset needs, as paths below the data folder."""
    from_hub = [] if spec.hub is None else [hub_folder(spec.hub)]
    return [file.target for file in spec.files] + from_hub


def hub_folder(reference: str) -> str:
    """Return the folder of a dataset of the Hub below the data folder: the repository's name."""
    return reference.partition("@")[0].rpartition("/")[2]


def manual_steps(spec: DatasetSpec, data_dir: Path) -> str:
    """Say in one line how to bring by hand what is missing; empty where nothing is."""
    if is_present(spec, data_dir):
        return ""
    if spec.hub is not None:
        name, _, revision = spec.hub.partition("@")
        steps = (
            f"put the parquet files of https://huggingface.co/datasets/{name}/tree/{revision} "
            f"in {data_dir / hub_folder(spec.hub)}"
        )
    else:
        steps = "; ".join(
            _manual_step(file, data_dir / file.name)
            for file in spec.files
            if not _is_there(data_dir / file.target) and not (data_dir / file.name).exists()
        )
    get = f"smallvit data get {spec.name}"
    if not steps:
        return f"run `{get}` to unpack what is there"
    return f"{steps}; then run `{get}`, or `{get} --from PATH` with the files at any PATH"


def find_difference(path: Path, file: RemoteFile) -> str | None:
    """Say how a file differs from the official one; the length first, since it is cheap."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes, expected {file.size:,}"
    md5 = _md5(path)
    return None if md5 == file.md5 else f"md5 {md5}, expected {file.md5}"


def download(file: RemoteFile, folder: Path, progress: FetchProgress | None = None) -> Path:
    """Download a file from the first of its addresses that serves it, going on where it stopped.

    The caller sees to it that no other process downloads the same file.

    Args:
        file: What to download.
        folder: Where to put it.
        progress: Called for each piece.

    Returns:
        The verified file.

    Raises:
        DataError: If no address serves it; the message gives each with its reason.
    """
    path = folder / file.name
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda what, done, total: None)
    failures: list[str] = []
    for url in file.urls:
        try:
            _download_from(url, file, part, report)
        except _AddressError as error:
            failures.append(f"{url}: {error}")
            continue
        with part.open("rb+") as whole:
            os.fsync(whole.fileno())  # else a crash could leave the name with less behind it
        part.replace(path)
        return path
    raise DataError(
        f"cannot download {file.name} ({'; '.join(failures)}): run again later, or "
        f"{_manual_step(file, path)} and run again"
    )


def _is_there(path: Path) -> bool:
    """Tell whether a file or a folder with something in it is there."""
    try:
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    except PermissionError:
        return True  # the reader says what is wrong with it


def _is_of(error: OSError, origin: Path, data_dir: Path) -> bool:
    """Tell whether what failed lies in the folder of the user's, not in the data folder.

    With two names it is a file that was being copied or renamed, mostly for want of room.
    """
    if error.filename is None or error.filename2 is not None:
        return False
    path = Path(error.filename)
    return path.is_relative_to(origin) and not path.is_relative_to(data_dir)


def _manual_step(file: RemoteFile, path: Path) -> str:
    return f"download {' or '.join(file.urls)} (md5 {file.md5}) to {path}"


def _fetch_files(
    spec: DatasetSpec, data_dir: Path, report: FetchProgress, *, offline: bool
) -> None:
    for file in spec.files:
        target, archive = data_dir / file.target, data_dir / file.name
        if _is_there(target):
            continue
        if archive.exists():
            _require_official(archive, file, "remove it, and download it again")
        elif offline:
            continue
        else:
            download(file, data_dir, report)
        if file.target != file.name:
            unpack(archive, target, progress=partial(report, f"unpacking {file.name}"))
    if not is_present(spec, data_dir):
        raise DataError(
            f"{spec.name} is missing and downloads are off: {manual_steps(spec, data_dir)}"
        )


def _take(spec: DatasetSpec, data_dir: Path, origin: Path) -> None:
    """Copy what is missing of a dataset from a file or folder of the user's."""
    if origin.is_file():
        _copy(origin, data_dir / _recognize(spec, origin).name)
        return
    missing = [file for file in spec.files if not _is_there(data_dir / file.target)]
    taken = [_take_one(file, data_dir, origin) for file in missing]
    expected = [f"{file.name} or, unpacked, {file.target}" for file in missing]
    if spec.hub is not None:
        folder = hub_folder(spec.hub)
        taken.append(_take_unpacked(folder, data_dir, origin, marks="**/*.parquet"))
        expected.append(f"{folder} or parquet files")
    if not any(taken):
        raise DataError(
            f"{origin} holds nothing that is missing of {spec.name}: expected {'; '.join(expected)}"
        )


def _recognize(spec: DatasetSpec, path: Path) -> RemoteFile:
    for file in spec.files:
        if file.name == path.name:
            _require_official(path, file, OR_UNPACKED)
            return file
    md5 = _md5(path)
    for file in spec.files:
        if file.md5 == md5:
            return file
    known = ", ".join(f"{file.name} (md5 {file.md5})" for file in spec.files)
    raise DataError(
        f"{path} (md5 {md5}) is no official file of {spec.name}: --from takes {known or 'a folder'}"
    )


def _take_one(file: RemoteFile, data_dir: Path, origin: Path) -> bool:
    archive = origin / file.name
    if archive.is_file():
        _require_official(archive, file, OR_UNPACKED)
        _copy(archive, data_dir / file.name)
        return True
    return _take_unpacked(file.target, data_dir, origin)


def _take_unpacked(target: str, data_dir: Path, origin: Path, marks: str | None = None) -> bool:
    """Copy a target that lies in ``origin`` or is ``origin``, as its name or ``marks`` tell."""
    parts = Path(target).parts
    inside = [origin.joinpath(*parts[i:]) for i in range(len(parts))]
    found = next((path for path in inside if _is_there(path)), None)
    if found is None:
        same_name = origin.name.casefold() == parts[-1].casefold() and _is_there(origin)
        marked = marks is not None and any(origin.glob(marks))
        if not (same_name or marked):
            return False
        found = origin
    _copy(found, data_dir / target)
    logger.info("copied %s; no checksum was verified, since it is unpacked", found)
    return True


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    if target.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{source} holds the data folder, {target.parent}: give another --from")
    with staging_folder(target) as staging:
        new = staging / "new"
        if source.is_dir():
            _copy_folder(source, new)
        else:
            shutil.copyfile(source, new)
        move_into_place(new, target, staging)


def _copy_folder(source: Path, target: Path, above: frozenset[Path] = frozenset()) -> None:
    """Copy a tree, what its links point to included.

    Modes are left behind, unlike by ``shutil.copytree``: a read-only folder could not be renamed.

    Args:
        source: What to copy.
        target: What it becomes.
        above: The folders that ``source`` was reached through, without links.
    """
    real = source.resolve()
    if real in above:
        raise DataError(f"{source} in --from is a link to a folder that holds it: remove the link")
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name, above | {real})
        else:
            shutil.copyfile(path, target / path.name)


def _require_official(path: Path, file: RemoteFile, remedy: str) -> None:
    problem = find_difference(path, file)
    if problem is not None:
        raise DataError(f"{path} is not the official file ({problem}): {remedy}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        # The sum that the sources publish; some systems forbid md5 where it is to be secure.
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _download_from(url: str, file: RemoteFile, part: Path, report: FetchProgress) -> None:
    """Complete ``part`` from one address, verified."""
    failures, leftover = 0, part.exists()
    while True:
        before = _length(part)
        try:
            _receive(url, file, part, report)
        except _AgainError as error:
            failures = 0 if _length(part) - before >= _ENOUGH else failures + 1
            if failures == MAX_FAILURES:
                raise _AddressError(str(error)) from error
            time.sleep(BACK_OFF_S * failures)
            continue
        problem = find_difference(part, file)
        if problem is None:
            return
        part.unlink()
        if not leftover:
            raise _AddressError(problem)
        leftover = False  # it was to blame, perhaps: it came from another day or address


def _receive(url: str, file: RemoteFile, part: Path, report: FetchProgress) -> None:
    """Ask once for what is missing of ``part`` and append it.

    Raises:
        _AddressError: If the address does not serve the file.
        _AgainError: If the connection ended early, the server is busy, or what was there was no
            beginning of the file and is removed.
    """
    offset = _length(part)
    if offset == file.size:
        return
    if file.size is not None and offset > file.size:
        part.unlink()
        offset = 0
    headers = {"User-Agent": f"smallvit/{__version__}"}
    headers |= {"Range": f"bytes={offset}-"} if offset else {}
    with _answer_to(urllib.request.Request(url, headers=headers)) as response:
        span = _span(response, offset)
        if span is None:
            part.unlink()
            raise _AgainError(f"what was downloaded before is no beginning of {file.name}")
        done, total = span
        if offset and offset == total:
            return
        if response.headers.get_content_type() == "text/html":
            raise _AddressError("an HTML page, not the file")
        if file.size is not None and total is not None and total != file.size:
            raise _AddressError(f"{total:,} bytes, expected {file.size:,}")
        _append(response, file, part, done, file.size if total is None else total, report)


def _append(
    response: http.client.HTTPResponse,
    file: RemoteFile,
    part: Path,
    done: int,
    total: int | None,
    report: FetchProgress,
) -> None:
    chunk = _read(response)
    if done == 0 and HTML.match(chunk):
        raise _AddressError("an HTML page, not the file")
    if total is not None:
        need_room(part.parent, total - done, f"downloading {file.name}")
    with part.open("ab" if done else "wb") as out:
        while chunk:
            out.write(chunk)
            done += len(chunk)
            report(f"downloading {file.name}", done, total)
            chunk = b"" if total is not None and done >= total else _read(response)
    if total is not None and done < total:
        raise _AgainError(f"the connection ended after {done:,} of {total:,} bytes")


def _span(response: Any, offset: int) -> tuple[int, int | None] | None:
    """Return where the body begins in the file, and the file's length where it is told.

    ``None`` says that what is there, of ``offset`` bytes, is no beginning of the file.
    """
    code, status = response.status, f"HTTP {response.status} {response.reason}"
    if code == http.HTTPStatus.OK:  # the whole, whatever was asked for
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if code in _BUSY:
        raise _AgainError(status)
    span = response.headers.get("Content-Range", "").strip()
    if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        return (offset, offset) if span == f"bytes */{offset}" else None  # nothing is missing
    if code != http.HTTPStatus.PARTIAL_CONTENT or not offset:
        raise _AddressError(status)
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span)
    if found is None or int(found[1]) != offset:
        return None
    return offset, None if found[2] == "*" else int(found[2])


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read what has arrived, so that little is lost when the connection is cut."""
    with _connected():
        return response.read1(_CHUNK)


def _connected() -> AbstractContextManager[None]:
    """Ask again where a connection breaks."""
    return explained(reason, OSError, http.client.HTTPException, into=_AgainError)


def _answer_to(request: urllib.request.Request) -> Any:
    """Return what a server answers, be it an error: the status says what to do."""
    with (
        _connected(),
        explained(
            lambda error: reason(getattr(error, "reason", error)),
            *(urllib.error.URLError, TimeoutError),
            into=_AddressError,
        ),
    ):
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as answer:
            return answer


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
