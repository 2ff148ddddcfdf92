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
from smallvit.cli.training import asked
from smallvit.core.console import say
from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import Run
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.runs.config import SegmentConfig
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

    run = run_stage(*asked("segment", given))
    if run is not None:
        _say_done(run)


def _say_done(run: Run) -> None:
    """Say how a run ended beside what the most frequent class alone would score."""
    result = run.result
    metrics, baseline = result["metrics"], result["baseline"]
    say(
        f"segment: val mIoU {metrics['val/miou']:.2%}, pixels {metrics['val/pixel_accuracy']:.2%} "
        f"({result['selected_on']}); the most frequent class alone "
        f"{baseline['val/miou']:.2%} and {baseline['val/pixel_accuracy']:.2%}; "
        f"{result['passes']:.1f} passes, {result['wall_s']:.1f} s\nrun: {run.path}\n"
        f"pictures: {run.path / 'plots' / 'segments.png'}"
    )
