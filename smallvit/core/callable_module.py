"""Packages that are also functions: ``smallvit.pretrain`` holds the stage and runs it."""

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that, when called, calls the function of its own name in another module.

    Attributes:
        api_module: Module of that function; imported on the first call, since it lies above.
    """

    api_module: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; see its docstring in ``api_module``."""
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Callable[..., Any]:
        name = self.__name__.rpartition(".")[2]
        with warnings.catch_warnings():
            # Of tqdm, in a notebook without widgets; no bar of it is ours.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return getattr(importlib.import_module(self.api_module), name)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's signature, for notebooks and ``help``."""
        return inspect.signature(self._function)


def make_callable(module_name: str, api_module: str) -> None:
    """Let a package of the same name as a public function stand for that function too."""
    module = sys.modules[module_name]
    module.__class__ = CallableModule
    module.__dict__["api_module"] = api_module
