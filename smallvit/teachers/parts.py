"""Score maps in the making: parts on disk that an interrupted run goes on from.

Shapes in this file:
    N    images of the split
"""

import logging
import shutil
from functools import partial
from pathlib import Path

from smallvit.core.errors import ConfigError, DataError, attempt
from smallvit.teachers.score_maps import ScoreMaps
from smallvit.teachers.tensor_file import read_tensors, write_tensors

logger = logging.getLogger("smallvit")


class Parts:
    """Parts of a split's score maps in one folder, each a whole file.

    A part is named by the place of its first image. A broken part, and all after it, are made
    again.

    Args:
        folder: Where they lie; it need not be there.
        identity: What they are of, by name: other parts are refused.
        num_classes: C.

    Raises:
        ConfigError: If the parts that are there are of something else.
    """

    def __init__(self, folder: Path, identity: dict[str, str], num_classes: int) -> None:
        self.folder = folder
        self.identity = identity
        self.num_classes = num_classes
        self.done = 0  # images
        self.wall_s = 0.0  # spent on them
        self._paths: list[Path] = []
        while (path := self._path(self.done)).is_file():
            content, fault = attempt(partial(read_tensors, path), DataError)
            if content is None:
                logger.warning("%s: made again from here", fault)
                break
            tensors, header = content
            changed = [key for key, value in identity.items() if header.get(key) != value]
            if changed:
                raise ConfigError(
                    f"{path} was written with other {' and '.join(changed)}: put them back, or "
                    "start a new run"
                )
            self._count(path, len(tensors["prob"]), header["wall_s"])

    def write(self, batches: list[ScoreMaps], wall_s: float) -> None:
        """Add one part, made of some batches.

        Raises:
            DataError: If it cannot be written; those before it are whole.
        """
        self.folder.mkdir(exist_ok=True)
        maps, path = ScoreMaps.join(batches), self._path(self.done)
        write_tensors(path, maps.tensors, {**self.identity, "wall_s": wall_s})
        self._count(path, len(maps.prob), wall_s)

    def join(self) -> ScoreMaps:
        """Return all of them as one."""
        parts = [read_tensors(path)[0] for path in self._paths]
        return ScoreMaps.join([ScoreMaps(**each, num_classes=self.num_classes) for each in parts])

    def remove(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:09d}.safetensors"

    def _count(self, path: Path, num: int, wall_s: float) -> None:
        self._paths.append(path)
        self.done += num
        self.wall_s += wall_s
