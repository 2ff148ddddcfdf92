"""Train Vision Transformers from scratch on small image data sets.

Importing smallvit registers its models with timm: at once where timm is loaded already, else when
it is first imported, so that this package itself imports in no time.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallvit.bench.api import bench as bench
    from smallvit.core.errors import SmallViTError as SmallViTError
    from smallvit.core.run_folder import Run as Run
    from smallvit.inference.pixels import read_image as read_image
    from smallvit.run.api import finetune as finetune
    from smallvit.run.api import label as label
    from smallvit.run.api import pretrain as pretrain
    from smallvit.run.api import teacher as teacher

__version__ = "0.1.0"
__all__ = [
    "Run",
    "SmallViTError",
    "bench",
    "finetune",
    "label",
    "pretrain",
    "read_image",
    "teacher",
]

# Public names and where they live; loaded on first use, since they import torch. The packages
# pretrain, finetune and bench can be called themselves.
_FUNCTIONS = {
    "teacher": "smallvit.run.api",
    "label": "smallvit.run.api",
    "read_image": "smallvit.inference.pixels",
    "Run": "smallvit.core.run_folder",
    "SmallViTError": "smallvit.core.errors",
}
_PACKAGES = ("bench", "finetune", "pretrain")


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        with warnings.catch_warnings():
            # Of tqdm, in a notebook without widgets; no bar of it is ours.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"smallvit.{name}")
    from smallvit.core.words import command_hint

    hint = "" if name.startswith("_") else command_hint([name])
    raise AttributeError(f"module 'smallvit' has no attribute {name!r}" + (hint and f": {hint}"))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _AfterTimm(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import ``smallvit.models`` right after timm is imported for the first time."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Stand in for timm's loader, once."""
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            self.loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to timm's loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run timm, then register this package's models with it."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("smallvit.models")


if "timm" in sys.modules:
    importlib.import_module("smallvit.models")
else:
    sys.meta_path.insert(0, _AfterTimm())
