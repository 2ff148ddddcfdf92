"""Options that several commands share, and which of them were given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import UNSET, App, ArgumentCollection, Parameter, Token

from smallvit.core.errors import ConfigError
from smallvit.engine.config import RuntimeConfig

# Without a --no- form: off unless it is given, or else the recipe's.
Switch = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a command line gives, apart from options that have their default.

    Only what was given overrides a recipe, so a default value given on purpose still counts.

    Attributes:
        argv: The command line.
        options: What was given, by option: ``{"epochs": 2, "optim.lr": 1e-3}``.
    """

    argv: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)

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
            self.options[name.removeprefix("--").replace("-", "_")] = value


# Handed to the commands that ask for it; no option of theirs.
GivenOptions = Annotated[Given, Parameter(parse=False)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images.

    Attributes:
        dataset: Name of a known dataset, or ``hf:owner/name@revision`` of the Hub.
        data: Folder of class folders, with or without train, val and test above them; CSV or
            parquet file; for stage 1 also a folder of images without labels.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        offline: Download nothing.
    """

    dataset: str | None = None
    data: Path | None = None
    recipe: str | None = None
    offline: Switch = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How it is computed.

    Attributes:
        seed: Seed of everything but the splits.
        runtime: Device, precision and memory.
    """

    seed: int | None = None
    runtime: Annotated[RuntimeConfig, Parameter(name="*", negative="", show_default=False)] = field(
        default_factory=RuntimeConfig
    )


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
    overwrite: Switch = False
    dry_run: Switch = False


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


def _is_empty(token: Token) -> bool:
    """Tell whether a value was given as empty text; a switch has none."""
    return token.implicit_value is UNSET and not token.value.strip()


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:  # of 0x10, which has been read
        return True
