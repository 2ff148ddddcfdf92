"""``smallvit label``."""

from pathlib import Path

from smallvit.cli.options import DataOptions, FolderOptions, GivenOptions, RuntimeOptions, Switch
from smallvit.cli.training import call_of
from smallvit.core.console import say
from smallvit.data.files.config import DataConfig
from smallvit.runs.config import LabelConfig


def label_command(
    *,
    teacher: Path | None = None,
    resume: Path | None = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    which: DataOptions = DataOptions(),
    how: RuntimeOptions = RuntimeOptions(),
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
        given: What of these was given.
        which: Data.
        how: Device and precision.
        where: Folders.
        data: Data settings.
        label: Settings of the maps.
    """
    from smallvit.runs.label import SCORE_MAPS  # late: help is to be quick
    from smallvit.runs.stage import run_stage

    run = run_stage(*call_of("label", given))
    if run is not None:
        maps = run.path / SCORE_MAPS
        say(f"score maps: {maps}\nnext: smallvit finetune --token-label --score-maps {maps}")
