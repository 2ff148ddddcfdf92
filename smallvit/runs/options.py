"""The one map from options to settings: command line and Python functions read it alike.

An option is named as Python names it (``batch_size``, ``optim.lr``), without dashes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallvit.core.config import nest
from smallvit.core.errors import ConfigError
from smallvit.core.places import absolute
from smallvit.runs.config import STAGES
from smallvit.runs.recipe import SHARED, with_absolute_paths

# Options whose setting has another name; {stage} is the stage of the command.
SETTINGS = {
    "dataset": "data.dataset",
    "data": "data.path",
    "allow_leak": "data.allow_leak",
    "device": "runtime.device",
    "precision": "runtime.precision",
    "compile": "runtime.compile",
    "deterministic": "runtime.deterministic",
    "grad_checkpointing": "runtime.grad_checkpointing",
    "micro_batch": "runtime.micro_batch",
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
        value = str(absolute(value)) if isinstance(value, Path) else value
        if flat.get(setting, value) != value:
            raise ConfigError(
                f"{origin[setting]} and {option} are one setting, {setting}: give one of them"
            )
        flat[setting], origin[setting] = value, option
    return with_absolute_paths(nest(flat))
