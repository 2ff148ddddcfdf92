"""Options that several commands share, and which of them were given."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import UNSET, App, ArgumentCollection, Parameter, Token

from smallvit.core.config import merge, nest
from smallvit.core.errors import ConfigError
from smallvit.core.places import absolute


class GivenOptions(threading.local):
    """Notes which options the user gave, apart from those that have their default.

    Only what was given overrides a recipe, so a default value given on purpose still counts. Each
    thread has its own.

    Attributes:
        argv: The command line.
        values: What was given, by option.
        brought: Nested settings that come with what was given, such as the model of ``--init``;
            they override a recipe too.
    """

    def __init__(self) -> None:
        self.argv: list[str] = []
        self.values: dict[str, Any] = {}
        self.brought: dict[str, Any] = {}

    def reset(self, argv: list[str]) -> None:
        """Forget an earlier command line."""
        self.argv = argv
        self.values = {}
        self.brought = {}

    def note(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Note the options given; cyclopts calls this before it binds them.

        Raises:
            ConfigError: If one is empty text, or no whole number where one is needed.
        """
        for argument in arguments:
            name = argument.name
            if any(map(_is_empty, argument.tokens)):
                raise ConfigError(f"{name} is empty: give it a value, or leave it out")
            if not argument.tokens or not name.startswith("--"):
                continue
            value = argument.convert_and_validate()
            typed = argument.tokens[0].value
            if type(value) is int and not _is_whole(typed):
                raise ConfigError(f"{name}: must be a whole number, got {typed!r}")
            self.values[name.removeprefix("--").replace("-", "_")] = value


given = GivenOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images, how and where.

    Attributes:
        dataset: Name of a known dataset, or ``hf:owner/name@revision`` of the Hub.
        data: Folder of class folders, with or without train, val and test above them; CSV or
            parquet file; for stage 1 also a folder of images without labels.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: Use operations alone that give the same bits each time on a CUDA device.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Most images of one forward and backward pass; the step stays as it is. By
            default all of a step's, and fewer once these are too many for the memory.
        offline: Download nothing.
    """

    dataset: str | None = None
    data: Path | None = None
    recipe: str | None = None
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    compile: Literal["auto", "on", "off"] | None = None
    deterministic: Annotated[bool | None, Parameter(negative="")] = None
    grad_checkpointing: Annotated[bool | None, Parameter(negative="")] = None
    micro_batch: int | None = None
    offline: Annotated[bool, Parameter(negative="")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Where a run goes.

    Attributes:
        out: Run folder; by default a new one under the runs folder.
        overwrite: Replace an earlier run in that folder.
        dry_run: Check settings, data and model, take one step, write nothing.
    """

    out: Path | None = None
    overwrite: Annotated[bool, Parameter(negative="")] = False
    dry_run: Annotated[bool, Parameter(negative="")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is trained and how long.

    Attributes:
        model: Network.
        epochs: Passes over the training images.
        batch_size: Images of one optimizer step.
        resume: Run to continue, with its own settings.
    """

    model: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    resume: Path | None = None


# Options whose place in a recipe is not their name; {stage} is the stage of the command.
PLACES = {
    "dataset": "data.dataset",
    "data": "data.path",
    "seed": "seed",
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
    "init": "{stage}.init",
    "score_maps": "{stage}.score_maps",
    "allow_leak": "data.allow_leak",
    "head": "{stage}.head.name",
}
SHARED_SECTIONS = ("data", "model", "runtime", "log", "pretrain", "teacher", "label", "finetune")
NOT_SETTINGS = (
    "recipe",
    "offline",
    "out",
    "overwrite",
    "dry_run",
    "resume",
    "arms",
    "json",
    "all",
    "from",
    "num",
)


def overrides(stage: str | None = None) -> dict[str, Any]:
    """Return the given options as nested recipe settings.

    Args:
        stage: Stage of the command, which its own sections belong to; ``None`` where sections
            already carry their stage.
    """
    from smallvit.runs.recipe import with_absolute_paths  # late: it brings torch

    flat: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in given.values.items():
        if key in NOT_SETTINGS:
            continue
        shown = f"{value:g}" if isinstance(value, float) else value
        option = f"--{key.replace('_', '-')} {shown}"
        section = key.split(".")[0]
        if key == "data" and str(value).startswith("hf:"):
            key, value = "dataset", str(value)
        if key in PLACES:
            place = PLACES[key].format(stage=stage)
        elif "." in key and section not in SHARED_SECTIONS:
            place = f"{stage}.{key}"
        else:
            place = key
        if stage == "teacher" and place.startswith("model."):
            place = f"teacher.{place}"
        value = str(absolute(value)) if isinstance(value, Path) else value
        if flat.get(place, value) != value:
            raise ConfigError(
                f"{origin[place]} and {option} are one setting, {place}: give one of them"
            )
        flat[place], origin[place] = value, option
    return merge(given.brought, with_absolute_paths(nest(flat)))


def _is_empty(token: Token) -> bool:
    """Tell whether a value was given as empty text; a switch has none."""
    return token.implicit_value is UNSET and not token.value.strip()


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return True  # as 0x10, which has been read
