"""``smallvit pretrain``."""

from smallvit.cli.method_options import MethodOptions
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
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.runs.config import MonitorConfig


def pretrain_command(
    *,
    init: str | None = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    which: DataOptions = DataOptions(),
    how: RuntimeOptions = RuntimeOptions(),
    training: TrainOptions = TrainOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    model: ModelConfig = ModelConfig(),
    method: MethodOptions = MethodOptions(),  # pyright: ignore[reportInvalidTypeForm]
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
    monitor: MonitorConfig = MonitorConfig(),
    log: LogConfig = LogConfig(),
) -> None:
    """Stage 1: pretrain on the target images, without labels.

    With --init it is a new run that goes on from other weights, with fresh heads; --resume
    continues a run that was interrupted. Values that are not given are the recipe's.

    Args:
        init: Run or export to go on from, ``timm:NAME`` for timm's weights, or ``scratch``.
        allow_leak: Take a start that may have seen held-out images of this data; it is recorded.
        given: What of these was given.
        which: Data.
        how: Device and precision.
        training: Model and length.
        where: Folders.
        data: Data settings.
        model: Model settings.
        method: What is learned, and its views.
        optim: Optimizer.
        schedule: Length and learning rate.
        monitor: What is measured on the way.
        log: How often to write.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*asked("pretrain", given))
    say_end(run, "smallvit finetune --init {run} --token-label")
