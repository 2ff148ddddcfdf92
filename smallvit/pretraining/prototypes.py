"""What the methods share that compare distributions over prototypes: dino and ibot.

Shapes in this file:
    V    global views
    B    images
    K    prototypes
"""

import copy
import math
import warnings
from typing import TypeVar

import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor

from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.processes import add_up_
from smallvit.parallel.rows import current_rows
from smallvit.pretraining.config import PrototypeConfig
from smallvit.pretraining.method import AbstractPretraining, move_teacher


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

    Args:
        config: Width, temperatures and momentum.
    """

    def __init__(self, config: PrototypeConfig) -> None:
        super().__init__(
            output_dim=config.num_prototypes,
            teacher_temp=config.teacher_temp,
            student_temp=config.student_temp,
            center_momentum=config.center_momentum,
        )
        self.register_buffer("batch_center", torch.zeros_like(self.center), persistent=False)
        self.batch_center: Tensor

    @torch.no_grad()
    def update_center(self, teacher_out: Float[Tensor, "V B K"]) -> None:
        """Note the mean of a part of the batch."""
        self.batch_center.add_(_weigh(teacher_out.mean(dim=(0, 1), keepdim=True)))


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


def _weigh(mean: Tensor) -> Tensor:
    """Weigh the mean of the rows at hand by their part of the batch."""
    here = current_rows()
    return mean if here is None else mean * here.share


PrototypeT = TypeVar("PrototypeT", bound=PrototypeConfig)


class AbstractPrototypes(AbstractPretraining[PrototypeT]):
    """Student and momentum teacher, a head each, and the loss of view prediction.

    Args:
        backbone: The student; the momentum teacher starts as its copy.
        config: Settings.

    Attributes:
        centers: What holds a centre and the mean that it moves by in this step.
    """

    def __init__(self, backbone: AbstractBackbone, config: PrototypeT) -> None:
        super().__init__(backbone, config)
        self.student_head = create_head(backbone.embed_dim, config)
        self.ema_teacher = copy.deepcopy(backbone).requires_grad_(False)
        # Built anew: deepcopy refuses a weight-normed layer.
        self.ema_teacher_head = create_head(backbone.embed_dim, config).requires_grad_(False)
        self.ema_teacher_head.load_state_dict(self.student_head.state_dict())
        self.criterion = ViewLoss(config)
        self.centers: list[ViewLoss | PatchCenter] = [self.criterion]

    @property
    def exported(self) -> AbstractBackbone:
        """The momentum teacher's network."""
        return self.ema_teacher

    @property
    def max_entropy(self) -> float:
        """Log K, in nats."""
        return math.log(self.config.num_prototypes)

    def before_update(self) -> None:
        """Add up over all processes the means that the centres move by."""
        for holder in self.centers:
            add_up_(holder.batch_center)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the centres, and the momentum teacher towards the student."""
        config = self.config
        for holder in self.centers:
            moved = center_momentum(holder.center, holder.batch_center, config.center_momentum)
            holder.center.copy_(moved)
            holder.batch_center.zero_()
        copies = (self.ema_teacher, self.ema_teacher_head)
        move_teacher(copies, (self.student, self.student_head), config.momentum, progress)


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
