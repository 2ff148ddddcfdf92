"""Train Vision Transformers from scratch on small image data sets.

Importing smallvit loads nothing: its functions bring what they need when they are first asked for.
``import smallvit.models`` registers the networks with timm.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallvit.core.errors import SmallViTError as SmallViTError
    from smallvit.core.run_folder import Run as Run
    from smallvit.inference.pixels import read_image as read_image
    from smallvit.leaderboard.api import bench as bench
    from smallvit.leaderboard.api import run as run
    from smallvit.runs.api import finetune as finetune
    from smallvit.runs.api import label as label
    from smallvit.runs.api import pretrain as pretrain
    from smallvit.runs.api import teacher as teacher

__version__ = "0.1.0"
__all__ = [
    "Run",
    "SmallViTError",
    "bench",
    "finetune",
    "label",
    "pretrain",
    "read_image",
    "run",
    "teacher",
]

# Public names and where they live; loaded on first use, since they import torch.
_HOMES = {
    "bench": "smallvit.leaderboard.api",
    "finetune": "smallvit.runs.api",
    "label": "smallvit.runs.api",
    "pretrain": "smallvit.runs.api",
    "read_image": "smallvit.inference.pixels",
    "run": "smallvit.leaderboard.api",
    "Run": "smallvit.core.run_folder",
    "SmallViTError": "smallvit.core.errors",
    "teacher": "smallvit.runs.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with warnings.catch_warnings():
            # Of tqdm, in a notebook without widgets; no bar of it is ours.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return getattr(importlib.import_module(_HOMES[name]), name)
    from smallvit.core.words import command_hint

    hint = "" if name.startswith("_") else command_hint([name])
    raise AttributeError(f"module 'smallvit' has no attribute {name!r}" + (hint and f": {hint}"))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
