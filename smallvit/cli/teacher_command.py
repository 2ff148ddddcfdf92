"""``smallvit teacher``."""

from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions
from smallvit.cli.training import train
from smallvit.data.augment import AugmentConfig
from smallvit.data.loader import DataConfig
from smallvit.engine.log import LogConfig
from smallvit.engine.optim import OptimConfig, ScheduleConfig
from smallvit.finetune.objective import SupervisedConfig
from smallvit.models.registry import ModelConfig


def teacher_command(
    *,
    which: DataOptions = DataOptions(),
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
    """Train the annotator of stage 2 on the same training split.

    Defaults shown are those of the code; the recipe's values come before them.
    """
    train("teacher", which, training, where)
