"""``smallvit segment``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import (
    FolderOptions,
    GivenOptions,
    RuntimeOptions,
    Switch,
    TrainOptions,
)
from smallvit.cli.training import call_of
from smallvit.core.console import say
from smallvit.core.model_config import ModelConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.runs.config import SegmentConfig
from smallvit.runs.outcome import describe_outcome
from smallvit.segment.config import HeadConfig, HeadName, SegmentAugmentConfig, SegmentDataConfig

DEFAULTS = SegmentConfig()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Which images and masks.

    Attributes:
        data: Folder of images/{train,val,test}/NAME.* and masks/{train,val,test}/NAME.png.
        recipe: Settings file, such as the recipe.yaml of an earlier segmentation.
        offline: Download nothing.
    """

    data: Path | None = None
    recipe: Path | None = None
    offline: Switch = False


def segment_command(
    *,
    init: str | None = None,
    allow_leak: Switch = False,
    head_name: Annotated[HeadName | None, Parameter(name="--head")] = None,
    given: GivenOptions,
    which: SegmentOptions = SegmentOptions(),
    how: RuntimeOptions = RuntimeOptions(),
    training: TrainOptions = TrainOptions(),
    where: FolderOptions = FolderOptions(),
    data: SegmentDataConfig = SegmentDataConfig(),
    model: ModelConfig = ModelConfig(),
    head: HeadConfig = DEFAULTS.head,
    augment: SegmentAugmentConfig = DEFAULTS.augment,
    optim: Annotated[OptimConfig, Parameter(show_default=False)] = DEFAULTS.optim,
    schedule: Annotated[ScheduleConfig, Parameter(show_default=False)] = DEFAULTS.schedule,
    log: LogConfig = LogConfig(),
) -> None:
    """Train a segmentation head, and the backbone below it, on images and masks.

    A mask is an 8-bit or palette PNG whose values are class indices; 255 is ignored. The test split
    is left alone: ``smallvit eval RUN --split test`` scores it. Without a recipe the learning rate
    is 5e-4 at batches of 32, for 50 epochs.

    Args:
        init: Run or export to start from, ``timm:NAME`` for timm's weights, or ``scratch``.
        allow_leak: Take weights that may have seen held-out images of this data; it is recorded.
        head_name: ``upernet-light`` joins several levels, ``linear`` reads the final tokens.
        given: What of these was given.
        which: Data.
        how: Device and precision.
        training: Model and length.
        where: Folders.
        data: Data settings.
        model: Model settings.
        head: Head settings.
        augment: Crop of the training images.
        optim: Optimizer.
        schedule: Length and learning rate.
        log: How often to write.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*call_of("segment", given))
    if run is not None:
        pictures = run.path / "plots" / "segments.png"
        say(f"{describe_outcome(run)}\nrun: {run.path}\npictures: {pictures}")
