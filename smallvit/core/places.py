"""Where things lie on this machine, by environment variable."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set for runs whose numbers are to be the same again
OFFLINE = ("SMALLVIT_OFFLINE", "HF_HUB_OFFLINE")  # read by us, and by the Hub's library


def cache_dir() -> Path:
    """Return SMALLVIT_CACHE_DIR, by default ``$XDG_CACHE_HOME/smallvit``."""
    folder = os.environ.get("SMALLVIT_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder).expanduser() if folder else Path(base) / "smallvit"


def data_dir() -> Path:
    """Return SMALLVIT_DATA_DIR, by default ``data`` in the cache."""
    folder = os.environ.get("SMALLVIT_DATA_DIR")
    return Path(folder).expanduser() if folder else cache_dir() / "data"


def runs_dir() -> Path:
    """Return SMALLVIT_RUNS_DIR, by default ``runs`` in the working directory."""
    return absolute(os.environ.get("SMALLVIT_RUNS_DIR") or "runs")


def absolute(path: Path | str) -> Path:
    """Return a path that means the same from any working directory."""
    return Path(path).expanduser().absolute()


def dead_link(path: Path) -> str | None:
    """Say which part of a path is a link to what is not there, and what to do; ``None`` if none."""
    for part in (path, *path.parents):
        if part.exists():
            return None
        if part.is_symlink():
            link = "is" if part == path else f"is below {part},"
            return (
                f"{link} a link to {part.readlink()}, which is not there: mount or make that, "
                "or remove the link"
            )
    return None


def nearest_folder(path: Path) -> Path:
    """Return a path, or what is there of the folders above it."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def write_fault(path: Path) -> str | None:
    """Return why nothing can be written below a path, which need not be there yet."""
    try:
        tempfile.TemporaryFile(dir=nearest_folder(path)).close()
    except OSError as error:
        return error.strerror
    return None


def offline() -> bool:
    """Tell whether SMALLVIT_OFFLINE forbids downloads."""
    return os.environ.get("SMALLVIT_OFFLINE", "").lower() not in ("", "0", "false", "no")


@contextmanager
def kept_environment(*, offline: bool = False) -> Iterator[None]:
    """Put the variables that smallvit sets back at the end.

    Args:
        offline: Forbid downloads meanwhile.
    """
    before = {name: os.environ.get(name) for name in (*OFFLINE, CUBLAS)}
    try:
        apply_offline(offline)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def apply_offline(forbidden: bool) -> None:
    """Make ``--offline`` or SMALLVIT_OFFLINE count for every library below."""
    if forbidden or offline():
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
