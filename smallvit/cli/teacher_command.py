"""``smallvit teacher``."""

from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions, given, overrides
from smallvit.cli.training import train
from smallvit.core.config import merge
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.core.places import absolute, apply_offline
from smallvit.data.config import AugmentConfig
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.finetuning.config import SupervisedConfig

# Of training alone, by the part before a dot.
OF_TRAINING = (
    "epochs",
    "batch_size",
    "resume",
    "method",
    "augment",
    "optim",
    "schedule",
    "log",
    "grad_checkpointing",
)


def teacher_command(
    *,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    allow_leak: Annotated[bool, Parameter(name="--allow-leak", negative="")] = False,
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
    """Train the annotator of stage 2 on the same training split, or adopt a trained network.

    Values that are not given are the recipe's.

    Args:
        start: Trained network to take instead of training one: run, export, ``timm:NAME``, or a
            file of weights with --model. What has no class names, such as a pretrain run or timm's
            weights, gets a classifier.
        allow_leak: With --from, take a network that may have seen held-out images, and record it.
        which: Data.
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
    from smallvit.runs.adopt import adopt_settings
    from smallvit.runs.start import TIMM

    given.values.pop("allow_leak", None)
    if start is None and allow_leak:
        raise ConfigError("--allow-leak needs --from")
    if start is None:
        train("teacher", which, training, where)
        return
    of_training = [key for key in given.values if key.split(".")[0] in OF_TRAINING]
    if of_training:
        option = of_training[0].replace("_", "-")
        raise ConfigError(f"--from takes a network as it is and trains none: leave --{option} out")
    apply_offline(which.offline)
    start = start if start.startswith(TIMM) else str(absolute(start))
    brought = adopt_settings(start, overrides("teacher"))
    if which.recipe is not None:
        brought.pop("data", None)
    adopted = {"teacher": {"adopt": start}, "data": {"allow_leak": allow_leak}}
    given.brought = merge(given.brought, merge(brought, adopted))
    train("teacher", which, training, where)
