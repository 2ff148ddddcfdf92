"""The settings of all methods of stage 1 as one group of options."""

import logging
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

from smallvit.core.errors import ConfigError
from smallvit.data.config import ViewsConfig
from smallvit.pretraining.config import METHODS, DinoConfig, get_method
from smallvit.runs.config import PretrainConfig
from smallvit.runs.recipe import find_recipe, read_layer

logger = logging.getLogger("smallvit")
OF_EVERY_METHOD = ("name", "views")


def check_method(name: str, values: Mapping[str, Any]) -> None:
    """Refuse a method that there is none of, and options of others than the one named.

    Args:
        name: The method that was named.
        values: What was given, by option.

    Raises:
        ConfigError: Names the first one.
    """
    takes = get_type_hints(get_method(name))
    for option in values:
        section, _, key = option.partition(".")
        key = key.partition(".")[0]
        if section == "method" and key and key not in takes:
            *most, last = (other for other in METHODS if key in get_type_hints(METHODS[other]))
            others = f"{', '.join(most)} and {last}" if most else last
            raise ConfigError(
                f"--method.{key.replace('_', '-')} is an option of {others}, not of {name}: "
                "leave it out"
            )


def compare_method(name: str, recipe: str | None, resume: Path | None) -> None:
    """Refuse to resume with another method; say what another one leaves out of a recipe.

    Args:
        name: The method that was named.
        recipe: Shipped recipe or file, where one was named.
        resume: Run to continue, if one is.

    Raises:
        ConfigError: If that run has another method.
    """
    if resume is not None:
        path = resume / "recipe.yaml"
        if path.is_file() and _method_of(path) not in (None, name):
            raise ConfigError(
                f"--resume {resume} continues a run of method {_method_of(path)}: leave --method "
                f"{name} out, or start a new run with --init"
            )
    elif recipe is not None and _method_of(find_recipe(recipe)) not in (None, name):
        theirs = _method_of(find_recipe(recipe))
        logger.info("%s has settings of method %s: left out for %s", recipe, theirs, name)


def _method_of(path: Path) -> str | None:
    """Return the method that a recipe has settings of."""
    section = read_layer(path).values.get("pretrain")
    method = section.get("method") if isinstance(section, Mapping) else None
    return method.get("name", DinoConfig().name) if isinstance(method, Mapping) else None


def _create_options(section: str, name_option: str) -> type:
    """Join the fields of all methods; each says whose it is.

    Defaults differ by method, so that an option that is not given is ``None`` here.

    Args:
        section: What the options start with.
        name_option: The option that names the method.
    """
    takers: dict[str, list[str]] = {}
    kinds: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, config in METHODS.items():
        documented = {
            p.arg_name: p.description or ""
            for owner in reversed(config.__mro__[:-1])  # several may share the settings of a base
            for p in parse_from_object(owner).params
        }
        for key, kind in get_type_hints(config).items():  # bounds are checked with the recipe
            if key in OF_EVERY_METHOD:
                continue
            assert kinds.setdefault(key, kind) == kind, f"{name}.{key} has another type elsewhere"
            takers.setdefault(key, []).append(name)
            texts.setdefault(key, documented.get(key, ""))
    fields: list[Any] = [
        (
            "name",
            Annotated[
                str | None,
                Parameter(name=name_option, help=f"What is learned: {', '.join(METHODS)}."),
            ],
            field(default=None),
        ),
        (
            "views",
            Annotated[ViewsConfig, Parameter(name=f"{section}.views", show_default=False)],
            field(default_factory=ViewsConfig),
        ),
    ]
    for key, kind in kinds.items():
        text = f"[{', '.join(takers[key])}] {' '.join(texts[key].split())}"
        option = Parameter(name=f"{section}.{key.replace('_', '-')}", help=text)
        fields.append((key, Annotated[kind | None, option], field(default=None)))
    options = make_dataclass("MethodOptions", fields, frozen=True, kw_only=True)
    options.__module__ = __name__  # cyclopts takes what lies in ``types`` for a builtin
    # The star leaves each name as it is: ``--method`` is the name's, not the group's.
    return Parameter(name="*")(options)


def _create_pretrain_options() -> type:
    """Return the settings of stage 1 with those of all methods in the place of one's."""
    method = _create_options("--pretrain.method", "--pretrain.method.name")
    hints = get_type_hints(PretrainConfig, include_extras=True) | {"method": method}
    defaults = PretrainConfig()
    fields: list[Any] = [
        (
            key,
            kind,
            field(default_factory=method if key == "method" else partial(getattr, defaults, key)),
        )
        for key, kind in hints.items()
    ]
    options = make_dataclass("PretrainOptions", fields, frozen=True, kw_only=True)
    options.__doc__ = PretrainConfig.__doc__
    options.__module__ = __name__
    return options


MethodOptions = _create_options("--method", "--method")
# Of ``smallvit run``, whose options carry their stage.
PretrainOptions = _create_pretrain_options()
