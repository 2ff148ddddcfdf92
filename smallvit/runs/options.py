"""The one map from options and arguments to settings: command line and Python read it alike.

An option is named as Python names it (``batch_size``, ``optim.lr``), without dashes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from smallvit.core import places
from smallvit.core.config import nest, paths, show
from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.core.run_folder import Run
from smallvit.core.words import hint
from smallvit.data.files.registry import DATASETS
from smallvit.engine.config import RuntimeConfig
from smallvit.runs.config import STAGES, Recipe, Stage
from smallvit.runs.recipe import SHARED, is_init_name, with_absolute_paths

RunLike = Run | Path | str
DataLike = Path | str | Mapping[str, Any]
Section = Mapping[str, Any]
INITS = ("init", "adopt")
PATH_ARGUMENTS = ("teacher", "score_maps", "out", "resume")
# Options whose setting has another name; {stage} is the stage of the command.
SETTINGS = {
    "dataset": "data.dataset",
    "data": "data.path",
    "allow_leak": "data.allow_leak",
    **{field.name: f"runtime.{field.name}" for field in fields(RuntimeConfig)},
    "model": "model.name",
    "epochs": "{stage}.schedule.epochs",
    "batch_size": "{stage}.optim.batch_size",
    "method": "{stage}.method.name",
    "token_label": "{stage}.token_label.enabled",
    "head": "{stage}.head.name",
    "from": "teacher.adopt",
    "label.batch_size": "label.batch_size",  # it has no optimizer
}
# What a call is told, and no recipe: which one, where its run goes, and what is printed.
OF_CALLS = (
    *("recipe", "out", "overwrite", "resume", "offline", "dry_run", "verbose"),
    *("json", "all", "num"),
)


def find_setting(option: str, stage: str | None) -> str:
    """Return the dotted name of the setting that an option stands for.

    Args:
        option: As in ``epochs`` or ``optim.lr``.
        stage: Stage of the command, which its own sections belong to; ``None`` where sections
            carry their stage already.
    """
    setting = SETTINGS.get(f"{stage}.{option}") or SETTINGS.get(option)
    if setting is None:
        shared = option.partition(".")[0] in (*SHARED, *STAGES) and option not in STAGES
        setting = option if shared or stage is None else f"{{stage}}.{option}"
    if stage == "teacher" and setting.startswith("model."):
        setting = f"teacher.{setting}"
    return setting.format(stage=stage)


def to_settings(options: Mapping[str, Any], stage: str | None = None) -> dict[str, Any]:
    """Return options as nested settings of a recipe, with absolute paths.

    Args:
        options: What was given, by option.
        stage: As for ``find_setting``.

    Raises:
        ConfigError: If two options are one setting and differ, or a path is none.
    """
    flat: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in options.items():
        if key in OF_CALLS:
            continue
        shown = f"{value:g}" if isinstance(value, float) else value
        option = f"--{key.replace('_', '-')} {shown}"
        if key == "data" and str(value).startswith("hf:"):
            key, value = "dataset", str(value)
        setting = find_setting(key, stage)
        value = str(places.absolute(value)) if isinstance(value, Path) else value
        if flat.get(setting, value) != value:
            raise ConfigError(
                f"{origin[setting]} and {option} are one setting, {setting}: give one of them"
            )
        flat[setting], origin[setting] = value, option
    return with_absolute_paths(nest(flat))


def read_arguments(arguments: Mapping[str, Any], stage: Stage | None = None) -> dict[str, Any]:
    """Return arguments as options by name; those that are ``None`` were not given.

    Args:
        arguments: All of a function, ``more`` being what it has no parameter for.
        stage: Stage of the function; ``None`` is of the whole recipe.

    Raises:
        ConfigError: If one is unknown, or of a kind that it cannot be.
    """
    values = {key: value for key, value in arguments.items() if value is not None}
    for key in (more := values.pop("more")):
        _check_known(key, {*arguments} - {"more"}, stage)
    options = _name_data(values.pop("data")) if "data" in values else {}
    if (recipe := values.pop("recipe", None)) is not None:
        if not isinstance(recipe, str | Path) or not str(recipe).strip():
            raise ConfigError(f"recipe must be the name or the file of one, got {show(recipe)}")
        options["recipe"] = str(recipe)
    for key, value in {**values, **more}.items():
        if key in INITS and isinstance(value, str) and is_init_name(value):
            options[key] = value
        elif key in (*INITS, *PATH_ARGUMENTS) and not isinstance(value, Mapping):
            options[key] = read_path(key, value)
        else:
            options.update(_flatten(key, value))
    return options


def read_path(name: str, run: Any) -> Path:
    """Return the absolute path that an argument names; of a run, its folder.

    Raises:
        ConfigError: If it is neither a run nor a path, or empty.
    """
    if not isinstance(run, Run | Path | str):
        raise ConfigError(f"{name} must be a run or a path, got {show(run)}")
    if not isinstance(run, Run) and not str(run).strip():
        raise ConfigError(f"{name} is empty: name a run or a path, or leave it out")
    return places.absolute(run.path if isinstance(run, Run) else run)


def _name_data(data: Any) -> dict[str, Any]:
    """Return what names the data: a data set, a path, or a whole section."""
    if isinstance(data, Mapping):
        return dict(_flatten("data", data))
    if not isinstance(data, str | Path):
        what = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
        raise ConfigError(
            f"data must be the name of a data set, a path or a mapping of settings, got a {what}: "
            "for images and labels that a program holds write a folder of class folders, or a CSV "
            "file with the columns image_path and label"
        )
    name = str(data)
    if not name.strip():
        raise ConfigError("data is empty: name a data set or a path, or leave it out")
    if name in DATASETS:
        return {"dataset": name}
    if isinstance(data, str) and name.replace("-", "").isalnum() and not Path(name).exists():
        raise UnknownNameError("dataset", name, DATASETS)
    return {"data": name}


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a section as its settings, and every value as a recipe has it."""
    if isinstance(value, Mapping):
        if key == "token_label":
            value = {"enabled": True, **value}
        for name, each in value.items():
            yield from _flatten(f"{key}.{name}", each)
    elif isinstance(value, Run):
        yield key, places.absolute(value.path)
    elif getattr(value, "shape", None) == () and hasattr(value, "item"):  # of numpy or torch
        yield key, value.item()
    else:
        yield key, str(value) if type(value).__name__ == "device" else value


def _check_known(key: str, arguments: set[str], stage: Stage | None) -> None:
    """Refuse an argument that no setting has, and name the one that is meant."""
    sections = get_type_hints(Recipe)
    if key.partition(".")[0] in {*arguments, *SHARED, *([stage] if stage else sections)}:
        return
    of_stage = list(paths(sections[stage])) if stage else []
    shared = [path for path in paths(Recipe) if stage is None or path.partition(".")[0] in SHARED]
    known = [*arguments, *of_stage, *shared]
    fault = f"{stage or 'run'}() has no argument {key!r}"
    end = hint(key, known, show=_as_argument) or ": docs/python.md lists those there are"
    raise ConfigError(f"{fault}{end}")


def _as_argument(name: str) -> str:
    """Write a setting as an argument: ``optim={"lr": ...}``."""
    name, _, value = name.partition(" ")
    section, _, key = name.rpartition(".")
    shown = f'"{value}"' if value else "..."
    return f'{section}={{"{key}": {shown}}}' if section else f"{key}={shown}"
