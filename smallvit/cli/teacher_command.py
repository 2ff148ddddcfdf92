"""``smallvit teacher``."""

from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import (
    DataOptions,
    FolderOptions,
    GivenOptions,
    RuntimeOptions,
    Switch,
    TrainOptions,
)
from smallvit.cli.training import asked, say_end
from smallvit.core.model_config import ModelConfig
from smallvit.data.config import AugmentConfig
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.finetuning.config import SupervisedConfig


def teacher_command(
    *,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    which: DataOptions = DataOptions(),
    how: RuntimeOptions = RuntimeOptions(),
    training: TrainOptions = TrainOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    model: ModelConfig = ModelConfig(),
    method: SupervisedConfig = SupervisedConfig(),
    augment: AugmentConfig = AugmentConfig(),
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
    log: LogConfig = LogConfig(),
) -> None:
    """Train the annotator of stage 2 on the same training split, or adopt a trained network.

    Values that are not given are the recipe's.

    Args:
        start: Trained network to take instead of training one: run, export, ``timm:NAME``, or a
            file of weights with --model. What has no class names, such as a pretrain run or timm's
            weights, gets a classifier.
        allow_leak: With --from, take a network that may have seen held-out images, and record it.
        given: What of these was given.
        which: Data.
        how: Device and precision.
        training: Model and length.
        where: Folders.
        data: Data settings.
        model: Model settings.
        method: Loss.
        augment: Augmentation.
        optim: Optimizer.
        schedule: Length and learning rate.
        log: How often to write.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*asked("teacher", given))
    say_end(run, "smallvit label --teacher {run}")
