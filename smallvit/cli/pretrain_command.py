"""``smallvit pretrain``."""

from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.method_options import MethodOptions, check_method, compare_method
from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions, given, overrides
from smallvit.cli.training import train
from smallvit.core.model_config import ModelConfig
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.runs.config import MonitorConfig


def pretrain_command(
    *,
    init: Annotated[str | None, Parameter(name="--init")] = None,
    allow_leak: Annotated[bool, Parameter(name="--allow-leak", negative="")] = False,
    which: DataOptions = DataOptions(),
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
        which: Data.
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
    from smallvit.runs.start import start_settings

    name = given.values.get("method")
    if name is not None:
        check_method(name, given.values)
        compare_method(name, which.recipe, training.resume)
    if init not in (None, "scratch") and which.recipe is None and training.resume is None:
        settings = overrides("pretrain")
        given.brought = start_settings(settings["pretrain"]["init"], settings)
    train("pretrain", which, training, where)
