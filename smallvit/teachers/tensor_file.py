"""Tensors in one safetensors file: written whole or not at all, checked by their own checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smallvit.core.errors import DataError, explained
from smallvit.core.hashing import tensor_bytes
from smallvit.core.whole_file import replacing

DTYPES = {torch.int32: "I32", torch.float16: "F16"}
CHECKSUM = "checksum"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and plain values beside ``path``, sync them, and rename them into place.

    The same content gives the same bytes, which safetensors' own writer does not promise: it puts
    the values of the header in another order each time.

    Args:
        path: Where the file goes.
        tensors: By name, int32 or float16, those of wider numbers first.
        header: Plain values; each is stored as JSON.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    values = {key: json.dumps(value) for key, value in header.items()}
    values[CHECKSUM] = json.dumps(_digest(values, stored))
    entries: dict[str, Any] = {"__metadata__": values}
    end = 0
    for name, tensor in stored.items():
        start, end = end, end + tensor.nbytes
        facts = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        entries[name] = facts | {"data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in stored.values():
            file.write(tensor_bytes(tensor))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file.

    A file without a checksum, as an earlier version wrote it, is read as it is.

    Raises:
        DataError: If it is missing, cut short or altered.
    """
    with explained(
        lambda error: f"{path} is no whole safetensors file ({type(error).__name__})",
        *(SafetensorError, ValueError, OSError, RecursionError),
    ):
        with safe_open(path, framework="pt") as file:
            values = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = {key: json.loads(value) for key, value in values.items()}
    if CHECKSUM in header:
        expected = header.pop(CHECKSUM)
        del values[CHECKSUM]
        if expected != _digest(values, tensors):
            raise DataError(f"{path} was altered after it was written: its checksum does not fit")
    return tensors, header


def _digest(values: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
