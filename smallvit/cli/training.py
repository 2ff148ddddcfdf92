"""What the commands of the stages have in common."""

from dataclasses import dataclass, field

from cyclopts import Parameter

from smallvit.cli.options import DataOptions, FolderOptions, Given, RuntimeOptions, TrainOptions
from smallvit.core.console import say
from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import Run
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.runs.config import AnyStage, Call, Recipe, SegmentRecipe
from smallvit.runs.outcome import describe_outcome


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What every stage that trains on images of classes takes.

    Attributes:
        which: Data.
        how: Device and precision.
        training: Model and length.
        where: Folders.
        data: Data settings.
        model: Model settings.
        optim: Optimizer.
        schedule: Length and learning rate.
        log: How often to write.
    """

    which: DataOptions = field(default_factory=DataOptions)
    how: RuntimeOptions = field(default_factory=RuntimeOptions)
    training: TrainOptions = field(default_factory=TrainOptions)
    where: FolderOptions = field(default_factory=FolderOptions)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log: LogConfig = field(default_factory=LogConfig)


def call_of(stage: AnyStage, given: Given) -> tuple[Recipe | SegmentRecipe, AnyStage, Call]:
    """Return what ``run_stage`` takes: the recipe that options ask for, and how it is called."""
    from smallvit.runs.request import Request, resolve  # late: help is to be quick

    request = Request(stage=stage, options=given.options, argv=given.argv)
    return resolve(request), stage, request.call


def say_end(run: Run | None, following: str) -> None:
    """Say how a training stage ended, where its run is and what to do next.

    Args:
        run: The run; ``None`` after a dry run, which has said so.
        following: Command that comes next, with ``{run}`` for the run.
    """
    if run is None:
        return
    if not run.env["dataset"]["class_names"]:
        following = "smallvit finetune --init {run} --data IMAGES-WITH-LABELS"
    say(f"{describe_outcome(run)}\nrun: {run.path}\nnext: {following.format(run=run.path)}")
