"""What the methods share that compare distributions over prototypes: dino and ibot.

Shapes in this file:
    V    global views
    B    images
    K    prototypes
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor

from smallvit.parallel.processes import add_up_
from smallvit.parallel.rows import current_rows
from smallvit.pretraining.config import PrototypeConfig


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
