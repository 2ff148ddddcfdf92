"""Settings and call of every stage; this file imports no torch, so that help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from smallvit.core.config import Range
from smallvit.core.model_config import ModelConfig
from smallvit.data.config import AugmentConfig
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import (
    LogConfig,
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    check_schedule,
)
from smallvit.evaluate.config import NUM_NEIGHBORS, TEMPERATURE
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.pretraining.config import DinoConfig, MethodConfig
from smallvit.segment.config import HeadConfig, SegmentAugmentConfig, SegmentDataConfig

Stage = Literal["pretrain", "teacher", "label", "finetune"]
AnyStage = Stage | Literal["segment"]
Arm = Literal["scratch", "ssl", "token-labels", "both"]
STAGES: tuple[Stage, ...] = ("pretrain", "teacher", "label", "finetune")


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a stage is called.

    Attributes:
        out: Run folder; ``None`` names one under the runs folder.
        overwrite: Replace an earlier run in ``out``.
        resume: Folder of the run to continue, with the same settings.
        dry_run: Check everything and take one step, but write nothing.
        argv: Command line, for env.json.
    """

    out: Path | None = None
    overwrite: bool = False
    resume: Path | None = None
    dry_run: bool = False
    argv: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is measured at each evaluation of stage 1; labels reach no more than these numbers.

    Attributes:
        knn_neighbours: Neighbours that vote on a validation image.
        knn_temp: Temperature of their votes.
        bank_size: Labelled training images to look for neighbours in, at most, evenly spread; the
            linear probe is fitted on them too.
        linear_probe: Whether a logistic regression is fitted on the features.
        on_collapse: Whether a collapse stops the run or only gives a warning.
    """

    knn_neighbours: Annotated[int, Range(ge=1)] = NUM_NEIGHBORS
    knn_temp: Annotated[float, Range(gt=0)] = TEMPERATURE
    bank_size: Annotated[int, Range(ge=1)] = 10_000
    linear_probe: bool = True
    on_collapse: Literal["stop", "warn"] = "stop"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1.

    Attributes:
        init: Run or export whose weights it goes on from, or ``timm:NAME`` for timm's; null or
            ``scratch`` is fresh weights.
        method: What is learned, and its views.
        optim: Optimizer.
        schedule: Length and learning rate.
        monitor: What is measured on the way, and what a collapse does.
    """

    init: str | None = None
    method: MethodConfig = field(default_factory=DinoConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=2.0e-4, batch_size=512, weight_decay=0.04)
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Training the annotator of stage 2.

    Attributes:
        adopt: Run, export, file of weights or ``timm:NAME`` that is taken instead of training one.
        model: Its network.
        method: Its loss.
        augment: Its augmentation.
        optim: Optimizer.
        schedule: Length and learning rate.
    """

    adopt: str | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="resnet20_small"))
    method: SupervisedConfig = field(default_factory=SupervisedConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Writing score maps.

    Attributes:
        teacher: Run of the teacher.
        top_k: Classes listed a place; null is 5, or all where there are 10 or fewer.
        temperature: What the teacher's logits are divided by; above 1 its maps are softer.
        flip: Average each map with the mirrored one of the mirrored image: twice the time.
        batch_size: Images of one forward pass.
    """

    teacher: Path | None = None
    top_k: Annotated[int | None, Range(ge=1)] = None
    temperature: Annotated[float, Range(gt=0)] = 1.0
    flip: bool = False
    batch_size: Annotated[int, Range(ge=1, le=1 << 20)] = 256


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Stage 2.

    Attributes:
        init: Run or export whose weights it starts from, ``timm:NAME`` for timm's, or ``scratch``,
            which null is as well unless ``smallvit finetune --token-label`` finds a pretrain run to
            continue from.
        score_maps: File of score maps for token labeling.
        teacher: Run of the teacher that labels patches in every step, where
            ``token_label.source`` is ``online``.
        token_label: Token labeling.
        method: Loss on the image label.
        augment: Augmentation.
        optim: Optimizer.
        schedule: Length and learning rate.
    """

    init: str | None = None
    score_maps: Path | None = None
    teacher: Path | None = None
    token_label: TokenLabelConfig = field(default_factory=TokenLabelConfig)
    method: SupervisedConfig = field(default_factory=SupervisedConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of every stage; a file may leave out any section.

    Attributes:
        description: What it is for, in one line.
        paper: What it follows.
        expected: What was measured with it, in one line; null until it was.
        cpu_recipe: Shipped recipe that does on a CPU what this one is for on a GPU; null where this
            one is for both.
        seed: Seed of everything but the splits.
        data: Images and splits.
        model: The student of both stages.
        runtime: Device and precision.
        log: How often to write.
        pretrain: Stage 1.
        teacher: The annotator.
        label: Its score maps.
        finetune: Stage 2.
        arms: Stage-2 runs of ``smallvit run``; what they build on is made once.
    """

    description: str = ""
    paper: str | None = None
    expected: str | None = None
    cpu_recipe: str | None = None
    seed: Annotated[int, Range(ge=0, lt=1 << 63)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    arms: tuple[Arm, ...] = ("scratch", "ssl", "token-labels", "both")

    def __post_init__(self) -> None:
        from smallvit.models.registry import check_model  # late: torch takes seconds

        check_model(self.model)
        check_model(self.teacher.model)
        # Not done by the stages: the command line builds one of the options given alone.
        for stage in (self.pretrain, self.teacher, self.finetune):
            check_schedule(stage.optim, stage.schedule)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """A segmentation fine-tune.

    Attributes:
        init: Run or export whose weights it starts from, ``timm:NAME`` for timm's, or ``scratch``.
        head: What reads the classes.
        augment: Crop of the training images.
        optim: Optimizer.
        schedule: Length and learning rate.
    """

    init: str = "scratch"
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: SegmentAugmentConfig = field(default_factory=SegmentAugmentConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5.0e-4, batch_size=32))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(epochs=50.0))

    def __post_init__(self) -> None:
        check_schedule(self.optim, self.schedule)


TrainingConfig = PretrainConfig | TeacherConfig | FinetuneConfig | SegmentConfig


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe:
    """Settings of a segmentation run; its recipe.yaml holds them and is one for ``--recipe``.

    Attributes:
        seed: Seed of everything but the splits.
        data: Images, masks and splits.
        model: The backbone.
        runtime: Device and precision.
        log: How often to write.
        segment: Start, head and training.
    """

    seed: Annotated[int, Range(ge=0)] = 0
    data: SegmentDataConfig = field(default_factory=SegmentDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        from smallvit.models.registry import check_model  # late: torch takes seconds

        check_model(self.model)
