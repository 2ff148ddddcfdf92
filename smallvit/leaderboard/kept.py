"""What was measured of a run, kept beside it so that a second call measures only what is missing.

Each measurement is a file in the run's folder ``bench/``, named by the hash of all that it depends
on: the weights, the test images and its settings.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallvit.core.errors import DataError
from smallvit.core.whole_file import replacing

FORMAT_VERSION = 1
PNG = b"\x89PNG\r\n\x1a\n"
logger = logging.getLogger("smallvit")


class KeptFile:
    """One measurement of one run, as a file.

    Args:
        run: Folder of the run.
        name: Name of the measurement.
        key: All that its figures depend on.
        is_whole: Says whether what was read has all that it was written with, beyond its figures.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        key: Mapping[str, Any],
        is_whole: Callable[[Mapping[str, Any]], bool] = bool,
    ) -> None:
        text = json.dumps({"format": FORMAT_VERSION, **key}, sort_keys=True)
        self.key = json.loads(text)  # as it will be read again: tuples are lists
        self.path = run / "bench" / f"{name}-{_digest(text)}.json"
        self.is_whole = is_whole

    def read(self) -> dict[str, Any] | None:
        """Return what was measured; ``None`` where nothing was, or its file is broken."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            if not self.path.is_file():
                return None
            measured = json.loads(self.path.read_text())
            if measured["key"] == self.key and _is_sound(measured) and self.is_whole(measured):
                return measured
        logger.warning("%s is broken: measured anew", self.path)
        return None

    def write(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Keep what was measured, and return it."""
        text = json.dumps({**measured, "key": self.key}, indent=2)
        _keep(self.path, f"{text}\n".encode())
        return measured

    def read_or(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured before, else measure and keep it."""
        return self.read() or self.write(measure())


def keep_picture(run: Path, name: str, key: Mapping[str, Any], draw: Callable[[], bytes]) -> bytes:
    """Return a PNG that was drawn before, else draw and keep it."""
    path = run / "bench" / f"{name}-{_digest(json.dumps(key, sort_keys=True))}.png"
    if path.is_file() and (picture := path.read_bytes()).startswith(PNG):
        return picture
    picture = draw()
    _keep(path, picture)
    return picture


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        # Shared: two processes may score one run.
        with replacing(path, "make the run's folder writable", shared=True) as file:
            file.write(content)
    except (OSError, DataError) as error:  # a read-only run can still be scored
        logger.warning("%s is not kept: %s", path, error)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_sound(measured: Mapping[str, Any]) -> bool:
    return all(math.isfinite(value) for value in measured["figures"].values()) and all(
        isinstance(text, str) for text in measured["protocol"].values()
    )
