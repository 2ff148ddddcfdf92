"""Checkpoints: written whole or not at all, checked by their own checksum, free of code."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallvit.core.errors import ConfigError, DataError
from smallvit.core.whole_file import replacing

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` beside ``path``, sync it, and rename it into place.

    A crash at any moment leaves the previous file whole.

    Args:
        path: Where it goes.
        state: Tensors and plain values only, nested in dicts and lists.
    """
    sealed = {**state, "format": FORMAT_VERSION}
    sealed["checksum"] = _digest(sealed)
    remedy = "free some room and continue with --resume; the checkpoint before it is whole"
    with replacing(path, remedy) as file:
        torch.save(sealed, file)


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
        checksum = state.pop("checksum")
    except Exception as error:  # a broken pickle stream raises nearly anything
        raise DataError(
            f"{path} is no whole checkpoint ({type(error).__name__}): remove it, or start anew "
            "without --resume"
        ) from error
    if state.get("format") != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format {state.get('format')}; this version reads {FORMAT_VERSION}"
        )
    if checksum != _digest(state):
        raise DataError(f"{path} was altered after it was written: its checksum does not fit")
    return state


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(np.asarray(array.flatten().view(torch.uint8)).data)
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
