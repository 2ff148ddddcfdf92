"""View prediction: a student predicts, from one view, what its momentum teacher sees in another.

Shapes in this file:
    V    global views
    L    local views
    B    images
    D    embed dim
    K    prototypes
    H W  global view in pixels
    h w  local view in pixels
"""

import copy
import warnings
from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.core.schedule import cosine
from smallvit.data.batches import ViewBatch
from smallvit.data.views import ViewsConfig
from smallvit.models.tokens import AbstractBackbone


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """View prediction; the defaults are those of Gani et al.

    Attributes:
        views: The views and their colours.
        num_prototypes: K, the width of the output.
        hidden_dim: Width of the projection head.
        bottleneck_dim: Width before the prototypes.
        head_batch_norm: Whether the head normalises over the batch, as DINO's does for CNNs; the
            paper does not, but a run of a few hundred steps gets off the ground sooner with it.
        student_temp: Temperature of the student's softmax.
        teacher_temp: Temperature of the momentum teacher's softmax after its warm-up.
        warmup_teacher_temp: Temperature at the start.
        warmup_teacher_temp_epochs: Passes over which it rises linearly.
        center_momentum: Decay of the centre that is subtracted from the momentum teacher's output.
        momentum: Decay of the momentum teacher at the start; it rises to 1 along a cosine.
        freeze_last_layer_epochs: Passes in which the prototypes stay fixed.

    Source:
        Gani et al., 2022, https://arxiv.org/abs/2210.07240; Caron et al., 2021, Emerging
        Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294.
        hananshafi/vits-for-small-scale-datasets@43a7493, train_ssl.py and projection_head.py. The
        momentum teacher is in evaluation mode here; there its stochastic depth stayed on.
    """

    views: ViewsConfig = field(default_factory=ViewsConfig)
    num_prototypes: Annotated[int, Range(ge=2)] = 1024
    hidden_dim: Annotated[int, Range(ge=1)] = 512
    bottleneck_dim: Annotated[int, Range(ge=1)] = 256
    head_batch_norm: bool = False
    student_temp: Annotated[float, Range(gt=0)] = 0.1
    teacher_temp: Annotated[float, Range(gt=0)] = 0.07
    warmup_teacher_temp: Annotated[float, Range(gt=0)] = 0.04
    warmup_teacher_temp_epochs: Annotated[float, Range(ge=0)] = 10.0
    center_momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9
    momentum: Annotated[float, Range(ge=0, le=1)] = 0.996
    freeze_last_layer_epochs: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        if self.warmup_teacher_temp > self.teacher_temp:
            raise ConfigError(
                f"method.warmup_teacher_temp ({self.warmup_teacher_temp}) must not exceed "
                f"method.teacher_temp ({self.teacher_temp})"
            )


class DinoObjective(AbstractObjective[ViewBatch]):
    """Student, momentum teacher, their heads and the loss of view prediction.

    The loss is the mean cross-entropy over all pairs of a global view of the momentum teacher and
    another view of the student: 18 pairs for two global and eight local views.

    Args:
        backbone: The student; the momentum teacher starts as its copy.
        config: Settings.
    """

    def __init__(self, backbone: AbstractBackbone, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        self.student = backbone
        self.student_head = _create_head(backbone.embed_dim, config)
        self.ema_teacher = copy.deepcopy(backbone).requires_grad_(False)
        # Built anew: deepcopy refuses a weight-normed layer.
        self.ema_teacher_head = _create_head(backbone.embed_dim, config).requires_grad_(False)
        self.ema_teacher_head.load_state_dict(self.student_head.state_dict())
        self.criterion = DINOLoss(
            output_dim=config.num_prototypes,
            teacher_temp=config.teacher_temp,
            student_temp=config.student_temp,
            center_momentum=config.center_momentum,
        )

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare the student's views with the momentum teacher's."""
        config = self.config
        self.ema_teacher.eval()
        self._freeze_prototypes(batch.epoch < config.freeze_last_layer_epochs)
        with torch.no_grad():
            teacher = self._project(self.ema_teacher, self.ema_teacher_head, batch.global_views)
        student = list(self._project(self.student, self.student_head, batch.global_views))
        if batch.local_views is not None:
            student += self._project(self.student, self.student_head, batch.local_views)
        temp = self.teacher_temp(batch.epoch)
        with torch.no_grad():  # before the loss moves the centre
            prob = torch.softmax((teacher - self.criterion.center) / temp, dim=-1)
            entropy = -(prob * prob.clamp(min=1e-9).log()).sum(dim=-1).mean()
        loss = self.criterion(list(teacher), student, teacher_temp=temp)
        return StepOutput(loss=loss, metrics={"train/teacher_entropy": entropy})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the momentum teacher towards the student."""
        momentum = cosine(self.config.momentum, 1.0, progress)
        for teacher, student in (
            (self.ema_teacher, self.student),
            (self.ema_teacher_head, self.student_head),
        ):
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(teacher.parameters()), list(student.parameters()), 1 - momentum
            )
            # Running statistics of batch norms are averages already.
            for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(theirs)

    def teacher_temp(self, epoch: float) -> float:
        """Return the momentum teacher's temperature after ``epoch`` passes."""
        config = self.config
        warmup = config.warmup_teacher_temp_epochs
        done = epoch / warmup if epoch < warmup else 1.0
        return config.warmup_teacher_temp + done * (
            config.teacher_temp - config.warmup_teacher_temp
        )

    def _freeze_prototypes(self, frozen: bool) -> None:
        # Without a gradient the optimizer passes the prototypes over.
        self.student_head.last_layer.weight_v.requires_grad_(not frozen)

    @staticmethod
    def _project(
        backbone: AbstractBackbone, head: nn.Module, views: Float[Tensor, "V B 3 H W"]
    ) -> Float[Tensor, "V B K"]:
        """Run all views of one size in one pass."""
        pooled = backbone(views.flatten(0, 1)).pooled
        return head(pooled).float().unflatten(0, views.shape[:2])


def _create_head(embed_dim: int, config: DinoConfig) -> DINOProjectionHead:
    with warnings.catch_warnings():
        # lightly 1.6 still builds its prototypes with torch's older weight_norm.
        warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
        return DINOProjectionHead(
            input_dim=embed_dim,
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            output_dim=config.num_prototypes,
            batch_norm=config.head_batch_norm,
        )
