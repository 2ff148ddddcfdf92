"""What the methods share that compare distributions over prototypes: dino and ibot.

Shapes in this file:
    V    global views
    B    images
    K    prototypes
"""

import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.data.config import ViewsConfig
from smallvit.parallel.processes import add_up_
from smallvit.parallel.rows import current_rows


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig:
    """Head, temperatures and momentum; the defaults are those of Gani et al.

    Attributes:
        name: The method.
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

    Raises:
        ConfigError: If the temperature would fall.
    """

    name: str = ""
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

    def target_temp(self, epoch: float) -> float:
        """Return the temperature of targets after ``epoch`` passes: linear, then constant."""
        warmup = self.warmup_teacher_temp_epochs
        done = epoch / warmup if epoch < warmup else 1.0
        return self.warmup_teacher_temp + done * (self.teacher_temp - self.warmup_teacher_temp)


def create_head(embed_dim: int, config: PrototypeConfig) -> DINOProjectionHead:
    """Build a projection head whose prototypes keep length one."""
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


class ViewLoss(DINOLoss):
    """The loss over all pairs of views, whose centre moves once a step.

    lightly's moves in each forward pass, of which a step has one for each micro-batch, and takes
    all processes to have as many images. Here it moves by the mean over the whole batch.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("batch_center", torch.zeros_like(self.center), persistent=False)
        self.batch_center: Tensor

    @torch.no_grad()
    def update_center(self, teacher_out: Float[Tensor, "V B K"]) -> None:
        """Note the mean of a part of the batch."""
        self.batch_center.add_(_weigh(teacher_out.mean(dim=(0, 1), keepdim=True)))

    def add_up_center(self) -> None:
        """Add up what all processes noted."""
        add_up_(self.batch_center)

    @torch.no_grad()
    def move_center(self) -> None:
        """Move the centre by what was noted in this step."""
        _move(self.center, self.batch_center, self.center_momentum)


class PatchCenter(Center):
    """The centre of patch tokens, which moves once a step, as that of ``ViewLoss``.

    Args:
        config: Width and momentum.
    """

    def __init__(self, config: PrototypeConfig) -> None:
        super().__init__(size=(1, config.num_prototypes), momentum=config.center_momentum)
        self.register_buffer("batch_center", torch.zeros_like(self.center), persistent=False)
        self.batch_center: Tensor

    @torch.no_grad()
    def update(self, x: Float[Tensor, "tokens K"]) -> None:
        """Note the mean of a part of the batch."""
        self.batch_center.add_(_weigh(x.mean(dim=0, keepdim=True)))

    def add_up(self) -> None:
        """Add up what all processes noted."""
        add_up_(self.batch_center)

    @torch.no_grad()
    def move(self) -> None:
        """Move the centre by what was noted in this step."""
        _move(self.center, self.batch_center, self.momentum)


def _weigh(mean: Tensor) -> Tensor:
    """Weigh the mean of the rows at hand by their part of the batch."""
    here = current_rows()
    return mean if here is None else mean * here.share


def _move(center: Tensor, batch_center: Tensor, momentum: float) -> None:
    center.copy_(center_momentum(center, batch_center, momentum))
    batch_center.zero_()


def create_view_loss(config: PrototypeConfig) -> ViewLoss:
    """Build the loss over all pairs of views, with its centre."""
    return ViewLoss(
        output_dim=config.num_prototypes,
        teacher_temp=config.teacher_temp,
        student_temp=config.student_temp,
        center_momentum=config.center_momentum,
    )


def freeze_prototypes(head: DINOProjectionHead, frozen: bool) -> None:
    """Choose whether prototypes stay fixed: without a gradient the optimizer passes them over."""
    head.last_layer.weight_v.requires_grad_(not frozen)


@torch.no_grad()
def target_metrics(
    logits: Float[Tensor, "V B K"], center: Float[Tensor, "... K"], temp: float
) -> dict[str, Float[Tensor, ""]]:
    """Return two entropies of targets, in nats: how sure each is, and how many prototypes all use.

    Returns:
        ``train/teacher_entropy``, the mean of each target's own; log K says that they are uniform.
        ``train/prototype_entropy``, that of the mean target; 0 says that one prototype has all.
    """
    prob = torch.softmax((logits - center) / temp, dim=-1)
    return {
        "train/teacher_entropy": entropy(prob).mean(),
        "train/prototype_entropy": entropy(prob.flatten(0, -2).mean(dim=0)),
    }


def entropy(prob: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape"]:
    """Return the entropy of distributions over the last axis, in nats."""
    return torch.special.entr(prob).sum(dim=-1)
