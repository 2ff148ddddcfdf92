"""Reading the weights of a checkpoint file, and nothing that runs."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from smallvit.core.errors import DataError, explained
from smallvit.models.convert.rules import Weights

# Where checkpoints keep the weights, best first: a teacher and an average are what gets evaluated.
CONTAINERS = (
    "teacher",
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "student",
)

WRAPPERS = ("module.", "backbone.")

NUMPY_CORES = ("core", "_core")  # of NumPy 1 and 2


def read_checkpoint(path: Path) -> tuple[Weights, list[str]]:
    """Read the weights of a ``.pth``, ``.pt`` or ``.safetensors`` file, and nothing that runs.

    Args:
        path: File.

    Returns:
        Weights without the containers and prefixes that training put around them, and one line
        for each part of the file that was left out.

    Raises:
        DataError: If the file is missing or broken, holds code, no weights, or weights that are
            not finite.
    """
    # A broken pickle stream raises nearly anything.
    with explained(partial(_refusal, path), Exception):
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Of other pickles torch warns first, and refuses them then.
            ignoring = warnings.catch_warnings(action="ignore")
            with torch.serialization.safe_globals(_harmless()), ignoring:
                content = torch.load(path, map_location="cpu", weights_only=True)
    notes: list[str] = []
    while isinstance(content, Mapping) and not _is_weights(content):
        key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        others = [str(other) for other in content if other != key]
        if others:
            notes.append(f"read {key!r} of the file; left out {', '.join(others)}")
        content = content[key]
    if not (isinstance(content, Mapping) and content and _is_weights(content)):
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        holds = names or ("nothing" if isinstance(content, Mapping) else type(content).__name__)
        raise DataError(
            f"{path} holds no weights under a name known for them; it holds {holds}: write its "
            "weights alone to a file (torch.save of the state_dict)"
        )
    weights = _unwrap(content)
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise DataError(
            f"{path} holds NaN or infinite values: {', '.join(broken)}: its training diverged, "
            "take an earlier checkpoint"
        )
    return weights, notes


def _harmless() -> list[Any]:
    """Return what such files hold beside tensors and plain values.

    The options of a command line (Gani et al., timm), and rates that NumPy computed, which the
    optimizer of stage 1 of Gani et al. keeps (train_ssl.py: ``param_group["lr"] =
    lr_schedule[it]``).
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in NUMPY_CORES),
        np.dtype,
        type(np.dtype(np.float64)),
    ]


def _refusal(path: Path, error: Exception) -> str:
    """Say why a file cannot be read, and what to do."""
    match error:
        case pickle.UnpicklingError():
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({found[1]})" if found else ""
            return (
                f"{path} is refused: it is no checkpoint or holds code{what}; save its state_dict "
                "alone"
            )
        case FileNotFoundError() | IsADirectoryError() | PermissionError():
            return f"{path} cannot be read ({error.strerror}): name a file of weights"
    return (
        f"{path} cannot be read as weights ({type(error).__name__}): it is cut short, or no .pth, "
        ".pt or .safetensors file; fetch it again, or name another"
    )


def _is_weights(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in content) and all(
        isinstance(value, Tensor) for value in content.values()
    )


def _unwrap(weights: Mapping[str, Tensor]) -> Weights:
    """Take off the prefixes of wrappers, such as DistributedDataParallel's."""
    unwrapped: Weights = {}
    for name, value in weights.items():
        short = name
        for prefix in WRAPPERS:
            short = short.removeprefix(prefix)
        if short in unwrapped:
            raise DataError(f"the file holds two weights {short}, one of them as {name}")
        unwrapped[short] = value
    return unwrapped
