"""``smallvit pretrain``."""

from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions
from smallvit.cli.training import train
from smallvit.data.loader import DataConfig
from smallvit.engine.log import LogConfig
from smallvit.engine.optim import OptimConfig, ScheduleConfig
from smallvit.models.registry import ModelConfig
from smallvit.pretrain.dino import DinoConfig


def pretrain_command(
    *,
    which: DataOptions = DataOptions(),
    training: TrainOptions = TrainOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    model: ModelConfig = ModelConfig(),
    method: DinoConfig = DinoConfig(),
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
    log: LogConfig = LogConfig(),
) -> None:
    """Stage 1: pretrain on the target images, without labels.

    Defaults shown are those of the code; the recipe's values come before them.
    """
    train("pretrain", which, training, where)
