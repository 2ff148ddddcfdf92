"""``smallvit label``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import DataOptions, FolderOptions, given, overrides
from smallvit.cli.training import apply_offline, say_recipe
from smallvit.core.config import merge
from smallvit.core.console import console
from smallvit.core.places import absolute
from smallvit.data.loader import DataConfig
from smallvit.run.label import SCORE_MAPS, run_label
from smallvit.run.recipe import LabelConfig, load_recipe


def label_command(
    *,
    teacher: Annotated[Path, Parameter(name="--teacher")],
    which: DataOptions = DataOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    label: LabelConfig = LabelConfig(),
) -> None:
    """Write a teacher's score maps of the training split.

    Args:
        teacher: Run of the teacher. Its own data and splits are used unless others are named.
        which: Data.
        where: Folders.
        data: Data settings.
        label: Settings of the maps.
    """
    apply_offline(which)
    settings = {key: value for key, value in overrides("label").items() if key != "teacher"}
    settings = merge(settings, {"label": {"teacher": str(absolute(teacher))}})
    own = teacher / "recipe.yaml"
    named = which.recipe or (str(own) if own.is_file() else None)
    recipe, name = load_recipe(named, settings)
    say_recipe(name)
    run = run_label(
        recipe, out=where.out, overwrite=where.overwrite, dry_run=where.dry_run, argv=given.argv
    )
    if run is not None:
        console.print(
            f"score maps: {run.path / SCORE_MAPS}\n"
            f"next: smallvit finetune --token-label --score-maps {run.path / SCORE_MAPS}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
