"""Where things lie on this machine, by environment variable."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return SMALLVIT_CACHE_DIR, by default ``$XDG_CACHE_HOME/smallvit``."""
    given = os.environ.get("SMALLVIT_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser() if given else Path(base) / "smallvit"


def data_dir() -> Path:
    """Return SMALLVIT_DATA_DIR, by default ``data`` in the cache."""
    given = os.environ.get("SMALLVIT_DATA_DIR")
    return Path(given).expanduser() if given else cache_dir() / "data"


def runs_dir() -> Path:
    """Return SMALLVIT_RUNS_DIR, by default ``runs`` in the working directory."""
    return absolute(os.environ.get("SMALLVIT_RUNS_DIR") or "runs")


def absolute(path: Path | str) -> Path:
    """Return a path that means the same from any working directory."""
    return Path(path).expanduser().absolute()


def offline() -> bool:
    """Tell whether SMALLVIT_OFFLINE forbids downloads."""
    return os.environ.get("SMALLVIT_OFFLINE", "").lower() not in ("", "0", "false", "no")
