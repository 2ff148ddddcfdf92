"""Contrast within a batch: two views of an image are alike, those of all others are not.

Shapes in this file:
    B    images
    O    width of what the head returns
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor

from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import gather
from smallvit.pretraining.config import SimClrConfig
from smallvit.pretraining.method import AbstractPretraining, project


class SimClrObjective(AbstractPretraining[SimClrConfig]):
    """One network, its head and the normalised, temperature-scaled cross-entropy.

    Both views go through network and head in one pass, so that batch norms see them together, as
    in the authors' code.

    Args:
        backbone: The network.
        config: Settings.
        image_size: Not needed: the network takes any size that it takes by itself.

    Source:
        google-research/simclr@244e712, model_util.py. The last batch norm has a scale and no
        shift, as there; lightly's has both.
    """

    compares_images = True

    def __init__(
        self, backbone: AbstractBackbone, config: SimClrConfig, *, image_size: int | None = None
    ) -> None:
        super().__init__(backbone, config)
        self.student_head = SimCLRProjectionHead(
            input_dim=backbone.embed_dim,
            hidden_dim=config.hidden_dim,
            output_dim=config.output_dim,
        )
        self.student_head.layers[-1].bias.requires_grad_(False)

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare each view with all others of the batch."""
        views = gather(project(self.student, self.student_head, batch.global_views))
        return StepOutput(loss=nt_xent(views, self.config.temperature))


def nt_xent(views: Float[Tensor, "2 B O"], temperature: float) -> Float[Tensor, ""]:
    r"""Cost of telling which of the other 2B - 1 views is of the same image.

    .. math::
        L = -\frac{1}{2B} \sum_i \log \frac{\exp(s_{i, p(i)} / \tau)}
        {\sum_{k \neq i} \exp(s_{ik} / \tau)}

    with cosines :math:`s` and the image's other view :math:`p(i)`. Uniform logits cost
    :math:`\log(2B - 1)`. lightly's loss is the same; it leaves a view itself out by a mask of truth
    values, for which a GPU makes the host wait.

    Args:
        views: Of any length.
        temperature: Tau.

    Source:
        Chen et al., 2020, https://arxiv.org/abs/2002.05709, equation 1.
    """
    # Cosines in bfloat16 have two digits, and the temperature multiplies what is lost.
    with torch.autocast(views.device.type, enabled=False):
        flat = F.normalize(views.float().flatten(0, 1), dim=1)
        logits = (flat @ flat.T / temperature).fill_diagonal_(float("-inf"))
        other = torch.arange(len(flat), device=flat.device).roll(len(flat) // 2)
        return F.cross_entropy(logits, other)
