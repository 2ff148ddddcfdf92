"""Help without the libraries that take seconds to import.

The help of a command is made of the fields and docstrings of its settings. These lie beside the
code that reads them, so their modules import torch, which help has no use for: in a process that
shows help and ends, stand-ins take the place of such libraries.

Source:
    Sphinx makes pages of docstrings where a library is not installed in the same way, by its
    setting ``autodoc_mock_imports``: https://www.sphinx-doc.org/en/master/usage/extensions/autodoc.html.
"""

import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "lightly",
    "sklearn",
    "scipy",
    "matplotlib",
    "numpy",
    "jaxtyping",
    "huggingface_hub",
    "safetensors",
    "PIL",
)
HELP_FLAGS = ("--help", "-h")


class _StandIn(ABCMeta):
    """The type of all that a stand-in module holds: classes that serve as base or decorator too."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)

    def __getitem__(cls, key: object) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())  # else Python would ask for items without end

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return what is decorated, or where nothing is, what may decorate next."""
        return args[0] if args and callable(args[0]) else cls


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)  # Python asks for those that mean something to it
    return _StandIn(name, (), {})


class _Module(ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        return _stand_in(name)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for every heavy library and each of its parts."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Take over the libraries named above."""
        if fullname.partition(".")[0] not in HEAVY:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make an empty module."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def asks_for_help(words: Sequence[str]) -> bool:
    """Tell whether a command line is answered with help, by the rule of cyclopts.

    Args:
        words: Words after ``smallvit``; those after ``--`` are no options.
    """
    options = words[: words.index("--")] if "--" in words else words
    return any(flag in options for flag in HELP_FLAGS)


def stand_in_for_heavy_libraries() -> None:
    """Let imports of heavy libraries bring stand-ins, for the rest of the process."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
