"""Views predicted in latent space, whose distribution is held to an isotropic Gaussian.

Shapes in this file:
    V    views
    B    images
    D    embed dim
    O    width of the head's output
"""

import torch
from lightly.loss import SIGReg
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightly.models.modules import LeJEPAProjectionHead

from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import gather
from smallvit.pretraining.config import LeJepaConfig
from smallvit.pretraining.method import AbstractPretraining


class LeJepaObjective(AbstractPretraining[LeJepaConfig]):
    """One network, its head, the distance of views from their image's mean, and SIGReg.

    There is no momentum teacher and no stopped gradient. All views go through the head together,
    so that its batch norms see them together. Directions are drawn from torch's generator, which
    the loop seeds by step.

    Args:
        backbone: The network.
        config: Settings.
        image_size: Not needed: the network takes any size that it takes by itself.

    Source:
        As ``LeJepaConfig``. lightly's ``LeJEPALoss`` is the same sum; its parts are called here, so
        that each can be logged, and so that views may all be large. Solarizing is for the second
        large view alone, where the authors do it in a fifth of all views.
    """

    compares_images = True

    def __init__(
        self, backbone: AbstractBackbone, config: LeJepaConfig, *, image_size: int | None = None
    ) -> None:
        super().__init__(backbone, config)
        self.student_head = LeJEPAProjectionHead(
            backbone.embed_dim, hidden_dim=config.hidden_dim, output_dim=config.output_dim
        )
        self.sigreg = SIGReg(num_vectors=config.num_directions)

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare each view with the mean of the large ones, and all views with a Gaussian."""
        sizes = [batch.global_views]
        if batch.local_views is not None:
            sizes.append(batch.local_views)
        pooled = torch.cat([self.student(views.flatten(0, 1)).pooled for views in sizes])
        num_global, num_images = batch.global_views.shape[:2]
        views = self.student_head(pooled).float().unflatten(0, (-1, num_images))
        views = gather(views)  # (V, B, O)
        # Characteristic functions in bfloat16 would be noise of the size of the term.
        with torch.autocast(views.device.type, enabled=False):
            sigreg = self.sigreg(views)
            invariance = lejepa_invariance_loss(all_proj=views, global_proj=views[:num_global])
            weight = self.config.sigreg_weight
            loss = weight * sigreg + (1 - weight) * invariance
        return StepOutput(
            loss=loss,
            metrics={
                "train/loss_sigreg": sigreg.detach(),
                "train/loss_invariance": invariance.detach(),
            },
        )
