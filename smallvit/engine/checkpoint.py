"""Checkpoints: written whole or not at all, checked by their own checksum, free of code."""

import hashlib
import logging
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallvit.core.errors import ConfigError, DataError
from smallvit.core.hashing import tensor_bytes
from smallvit.core.whole_file import replacing

logger = logging.getLogger("smallvit")
FORMAT_VERSION = 1
LAST = "last.pt"
BEST = "best.pt"  # with the highest score on validation
PREVIOUS = "previous.pt"  # the last but one, as long as the run is not finished
TRAIN = "train the run again (--overwrite takes its folder)"
AGAIN = f"put a copy of it back, or {TRAIN}"
BROKEN = "broken.pt"  # a last.pt that could not be read


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` beside ``path``, sync it, and rename it into place.

    The ``last.pt`` that another one replaces is kept as ``previous.pt``. A crash at any moment
    leaves a whole file.

    Args:
        path: Where it goes.
        state: Tensors and plain values only, nested in dicts and lists.

    Raises:
        DataError: If it cannot be written; the checkpoint before it is whole.
    """
    sealed = {**state, "format": FORMAT_VERSION}
    sealed["checksum"] = _digest(sealed)
    remedy = "free some room and continue with --resume; the checkpoint before it is whole"
    keep = path.with_name(PREVIOUS) if path.name == LAST else None
    with replacing(path, remedy, keep=keep) as file:
        torch.save(sealed, file)


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a run has saved a state to continue from, whole or not."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def load_newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """Read the newest whole checkpoint of a run, onto the CPU.

    Args:
        folder: Its checkpoints folder.

    Returns:
        The state, and the file that it is from. Where that is not ``last.pt``, a warning says so
        and a broken ``last.pt`` is set aside.

    Raises:
        DataError: If no checkpoint is whole.
        ConfigError: If a newer format wrote it.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        return load_checkpoint(last), last
    except DataError as error:
        fault = error
    try:
        state = load_checkpoint(previous)
    except DataError as error:
        both = (
            f"no checkpoint in {folder} is whole ({LAST} and {PREVIOUS} are both missing or broken)"
        )
        raise DataError(f"{both if previous.exists() else fault}: {AGAIN}") from error
    with suppress(OSError):  # else the next checkpoint would move it over the whole one
        last.replace(folder / BROKEN)
    step = state.get("result", {}).get("step")
    logger.warning("%s: going on from %s, the steps after %s are repeated", fault, previous, step)
    return state, previous


def drop_previous(folder: Path) -> None:
    """Remove what only a run that is not finished needs; say so if that fails."""
    for path in (folder / PREVIOUS, folder / BROKEN):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is left where it is (%s)", path, error.strerror)


def check_room(
    folder: Path, objective: nn.Module, *, selects: bool, averages: bool = False
) -> None:
    """Refuse to start where the checkpoints to come do not fit.

    The newest, the one before it and the one that is being written are there at a time, and the
    best one where there is a choice. An optimizer is taken to keep two numbers a weight.

    Args:
        folder: The checkpoints folder; those in it are to be replaced.
        objective: What is trained.
        selects: Whether the best weights are kept as well.
        averages: Whether a running average is kept with the weights.

    Raises:
        DataError: Naming the room that is needed and the room that there is.
    """
    tensors = (x for x in objective.state_dict().values() if isinstance(x, torch.Tensor))
    weights = sum(tensor.nbytes for tensor in tensors)
    trained = sum(value.nbytes for value in objective.parameters() if value.requires_grad)
    needed = (4 if selects else 3) * (weights + (3 if averages else 2) * trained)
    there = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir())
    if there < needed:
        raise DataError(
            f"the checkpoints in {folder} need {needed / 1e6:,.3f} MB and there are "
            f"{there / 1e6:,.3f} MB: free some room, or choose another --out"
        )


def read_best(checkpoints: Path, otherwise: str) -> dict[str, Any] | None:
    """Read the checkpoint with the best weights; if it cannot be had, say what is done then.

    Args:
        checkpoints: Folder of the run's checkpoints.
        otherwise: What is done without it.
    """
    try:
        return load_checkpoint(checkpoints / BEST)
    except (ConfigError, DataError) as error:
        logger.warning("%s: %s", error, otherwise)
        return None


def as_scored(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a checkpoint as they were scored: averaged where they have that."""
    return {**state["objective"], **(state.get("ema") or {})}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code in it.

    Raises:
        DataError: If it is missing, cut short or altered.
        ConfigError: If a newer format wrote it.
    """
    if not path.is_file():
        raise DataError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        checksum, version = state.pop("checksum"), state["format"]
        # Another version may seal in another way.
        whole = version != FORMAT_VERSION or checksum == _digest(state, 2 * path.stat().st_size)
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle stream raises nearly anything
        raise DataError(f"{path} is no whole checkpoint ({type(error).__name__})") from error
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "update smallvit" if newer else TRAIN
        raise ConfigError(
            f"{path} has format {version!r}; this version reads {FORMAT_VERSION}: {remedy}"
        )
    if not whole:
        raise DataError(f"{path} was altered after it was written: its checksum does not fit")
    return state


def _digest(value: Any, most: float = math.inf) -> str:
    digest = hashlib.sha256()
    _feed(digest, value, most)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any, most: float) -> float:
    """Hash values; return how many bytes of ``most`` are left: few in a file may stand for many.

    Raises:
        ValueError: If they are more than that.
    """
    most -= 1 + (value.nbytes if isinstance(value, torch.Tensor) else 0)
    if most < 0:
        raise ValueError("its values take more bytes than a file of its size can mean")
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            most = _feed(digest, item, most)
    elif isinstance(value, list | tuple):
        for item in value:
            most = _feed(digest, item, most)
    else:
        digest.update(repr(value).encode())
    return most
