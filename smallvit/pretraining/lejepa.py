"""Views predicted in latent space, whose distribution is held to an isotropic Gaussian.

Shapes in this file:
    V    views
    B    images
    D    embed dim
    O    width of the head's output
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from lightly.loss import SIGReg
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightly.models.modules import LeJEPAProjectionHead

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import gather
from smallvit.pretraining.method import AbstractPretraining


@dataclass(frozen=True, kw_only=True)
class LeJepaConfig:
    """Views predicted in latent space; the defaults are the authors', narrower for small images.

    Their local views show a twentieth to three tenths of an image; of 32 px a twentieth is 7 px a
    side, so here they begin at a tenth.

    Attributes:
        name: The method.
        views: The views and their colours; two at least.
        sigreg_weight: Lambda, the weight of the distribution's term; the invariance has the rest.
        num_directions: Random directions along which each step looks at the distribution. Memory
            grows with views x images x directions x 17.
        hidden_dim: Width of the projection head.
        output_dim: Width of its output.

    Source:
        Balestriero and LeCun, 2025, LeJEPA: Provable and Scalable Self-Supervised Learning Without
        the Heuristics, https://arxiv.org/abs/2511.08544; rbalestr-lab/lejepa@a0d6745, README.md
        (views), and rbalestr-lab/lejepa@2f2d970, MINIMAL.md (256 directions for small images; the
        paper has 1024).
    """

    name: Literal["lejepa"] = "lejepa"
    views: ViewsConfig = field(
        default_factory=lambda: ViewsConfig(
            num_local=6,
            global_scale=(0.3, 1.0),
            local_scale=(0.1, 0.3),
            blur_prob=(0.5, 0.5, 0.5),
        )
    )
    sigreg_weight: Annotated[float, Range(ge=0, le=1)] = 0.05
    num_directions: Annotated[int, Range(ge=1)] = 256
    hidden_dim: Annotated[int, Range(ge=1)] = 512
    output_dim: Annotated[int, Range(ge=1)] = 64

    def __post_init__(self) -> None:
        if self.views.num_global + self.views.num_local < 2:
            raise ConfigError(
                "lejepa compares views, and method.views makes one: set method.views.num_global 2"
            )


class LeJepaObjective(AbstractPretraining):
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
        super().__init__()
        self.config = config
        self.student = backbone
        self.student_head = LeJEPAProjectionHead(
            backbone.embed_dim, hidden_dim=config.hidden_dim, output_dim=config.output_dim
        )
        self.sigreg = SIGReg(num_vectors=config.num_directions)

    @property
    def exported(self) -> AbstractBackbone:
        """The student's network."""
        return self.student

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
