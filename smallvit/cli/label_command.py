"""``smallvit label``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from smallvit.cli.options import DataOptions, FolderOptions, given, overrides
from smallvit.cli.training import say_recipe
from smallvit.core.config import merge
from smallvit.core.console import console
from smallvit.core.errors import ConfigError
from smallvit.core.places import absolute, apply_offline
from smallvit.core.run_folder import open_classifier
from smallvit.data.files.config import DataConfig
from smallvit.runs.config import LabelConfig, Recipe
from smallvit.runs.recipe import load_recipe, open_unfinished


def label_command(
    *,
    teacher: Annotated[Path | None, Parameter(name="--teacher")] = None,
    resume: Path | None = None,
    allow_leak: Annotated[bool, Parameter(negative="")] = False,
    which: DataOptions = DataOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    label: LabelConfig = LabelConfig(),
) -> None:
    """Write a teacher's score maps of the training split.

    Values that are not given are the recipe's.

    Args:
        teacher: Run of the teacher. Its own data and splits are used unless others are named.
        resume: Run to continue, with its own settings.
        allow_leak: Take a teacher that may have seen test images of this data set; it is recorded.
        which: Data.
        where: Folders.
        data: Data settings.
        label: Settings of the maps.
    """
    from smallvit.runs.label import SCORE_MAPS, run_label

    apply_offline(which.offline)
    settings = {key: value for key, value in overrides("label").items() if key != "teacher"}
    if teacher is not None:
        settings = merge(settings, {"label": {"teacher": str(absolute(teacher))}})
    if resume is not None:
        recipe = _resumed(resume, which, settings)
    else:
        if teacher is not None:
            open_classifier(teacher, "--teacher")
        own = None if teacher is None else teacher / "recipe.yaml"
        named = which.recipe or (str(own) if own is not None and own.is_file() else None)
        if teacher is None and named is None:
            raise ConfigError("no teacher named: give --teacher RUN; 'smallvit teacher' trains one")
        if which.recipe is None:  # what the teacher was let build on is not asked for here
            settings = merge({"data": {"allow_leak": False}}, settings)
        recipe, name = load_recipe(named, settings, same_data=which.recipe is None)
        say_recipe(name)
    run = run_label(
        recipe,
        out=where.out,
        overwrite=where.overwrite,
        resume=resume,
        dry_run=where.dry_run,
        argv=given.argv,
    )
    if run is not None:
        console.print(
            f"score maps: {run.path / SCORE_MAPS}\n"
            f"next: smallvit finetune --token-label --score-maps {run.path / SCORE_MAPS}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _resumed(folder: Path, which: DataOptions, settings: Mapping[str, Any]) -> Recipe:
    """Resolve the recipe that a run to continue brings."""
    if which.recipe is not None:
        raise ConfigError("--resume brings its own recipe: leave --recipe out")
    open_unfinished(folder, "label")
    own = folder / "recipe.yaml"
    return load_recipe(str(own), settings, same_data=True)[0]
