"""Momentum contrast: a student tells which image of the batch its momentum teacher saw.

Shapes in this file:
    V    global views, two
    B    images
    O    width of what a head returns
    H W  view in pixels
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import gather
from smallvit.pretraining.config import MocoV3Config
from smallvit.pretraining.method import AbstractPretraining, move_teacher


class MocoV3Objective(AbstractPretraining[MocoV3Config]):
    """Student with projection and prediction head, momentum teacher with projection head.

    Both views go through each network in one pass, but through the heads one after the other: as in
    the authors' code, the batch norms there see one view at a time, and views differ in blur and
    solarizing. Only a network with batch norms of its own sees both views together; theirs does
    not.

    The momentum teacher's batch norms, also those of its heads, use the statistics of the batch as
    theirs do: running averages would lag behind the student. Its stochastic depth is off; their
    ViT has none. It moves after each step, not before the next, which is the same sequence.

    Args:
        backbone: The student; the momentum teacher starts as its copy.
        config: Settings.
        image_size: Side of the images, in pixels.

    Raises:
        ConfigError: If no patch embedding can be found to freeze.

    Source:
        facebookresearch/moco-v3@0c5d00a, moco/builder.py. The last batch norm of both heads has no
        scale and shift, as there; lightly's has. The projection head has three layers for every
        architecture; theirs has two for a ResNet. Positions are the architecture's own; theirs
        are fixed sines.
    """

    compares_images = True

    def __init__(
        self, backbone: AbstractBackbone, config: MocoV3Config, *, image_size: int
    ) -> None:
        super().__init__(backbone, config)
        if config.freeze_patch_embed:
            for parameter in patch_embedding(backbone, image_size):
                parameter.requires_grad_(False)
        self.student_head = self._create_head(backbone.embed_dim, num_layers=3)
        self.predictor = self._create_head(config.output_dim, num_layers=2)
        self.ema_teacher = copy.deepcopy(backbone).requires_grad_(False)
        self.ema_teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare the student's predictions with the momentum teacher's keys of the other view."""
        self._still_teacher()
        views = batch.global_views
        with torch.no_grad():
            keys = _project_apart(self.ema_teacher, self.ema_teacher_head, views)
        queries = _project_apart(
            self.student, lambda pooled: self.predictor(self.student_head(pooled)), views
        )
        loss = symmetric_info_nce(gather(queries), gather(keys), self.config.temperature)
        return StepOutput(loss=loss)

    def after_step(self, progress: float) -> None:
        """Move the momentum teacher towards the student."""
        copies = (self.ema_teacher, self.ema_teacher_head)
        move_teacher(copies, (self.student, self.student_head), self.config.momentum, progress)

    def _create_head(self, input_dim: int, *, num_layers: int) -> MoCoProjectionHead:
        config = self.config
        head = MoCoProjectionHead(
            input_dim=input_dim,
            hidden_dim=config.hidden_dim,
            output_dim=config.output_dim,
            num_layers=num_layers,
            batch_norm=True,
        )
        head.layers[-1] = nn.BatchNorm1d(config.output_dim, affine=False)
        return head

    def _still_teacher(self) -> None:
        """Switch the momentum teacher's stochastic depth off, and nothing else."""
        self.ema_teacher.eval()
        for module in self.ema_teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.training)


def symmetric_info_nce(
    queries: Float[Tensor, "2 B O"], keys: Float[Tensor, "2 B O"], temperature: float
) -> Float[Tensor, ""]:
    r"""Cost of telling by its query which key of the other view is of the same image.

    .. math::
        L = 2 \tau \left( \operatorname{InfoNCE}(q_1, k_2) + \operatorname{InfoNCE}(q_2, k_1)
        \right)

    with cosines over the temperature :math:`\tau` for logits. Uniform logits cost
    :math:`4 \tau \log B`.

    Args:
        queries: Of both views, of any length.
        keys: Of both views, of any length.
        temperature: Tau; the factor 2 tau keeps gradients of one size whatever it is.

    Source:
        Chen, Xie and He, 2021, https://arxiv.org/abs/2104.02057, Algorithm 1.
    """
    # Cosines in bfloat16 have two digits, and the temperature multiplies what is lost.
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(queries.float(), dim=-1)
        keys = F.normalize(keys.float().flip(0), dim=-1)
        logits = queries @ keys.mT / temperature  # (2, B, B): row is query, column is key
        labels = torch.arange(logits.shape[1], device=logits.device).expand(2, -1)
        # The mean over both views is half of their sum.
        return 4 * temperature * F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def patch_embedding(backbone: AbstractBackbone, image_size: int) -> list[nn.Parameter]:
    """Return the trained parameters that make patches of pixels.

    They are those that ``embed`` uses, norms and further layers of a stem included. Where ``embed``
    only hands on the pixels they are those of the layer that timm names as the first one.

    Args:
        backbone: The network.
        image_size: Side of an image that it takes, in pixels.

    Raises:
        ConfigError: If there is no telling.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    with backbone.probing(), torch.enable_grad():
        patches = backbone.embed(trained[0].new_zeros(1, 3, image_size, image_size))
    if patches.requires_grad:
        used = torch.autograd.grad(patches.sum(), trained, allow_unused=True)
        return [p for p, grad in zip(trained, used, strict=True) if grad is not None]
    settings: dict[str, Any] = getattr(backbone.model, "pretrained_cfg", None) or {}
    first = settings.get("first_conv")
    modules = dict(backbone.model.named_modules())
    names = [first] if isinstance(first, str) else first or ()
    found = [p for name in names if name in modules for p in modules[name].parameters()]
    if not found:
        raise ConfigError(
            f"mocov3 freezes the patch embedding, but cannot tell which layer of "
            f"{type(backbone.model).__name__} it is: set method.freeze_patch_embed false"
        )
    return found


def _project_apart(
    backbone: AbstractBackbone,
    head: Callable[[Tensor], Tensor],
    views: Float[Tensor, "V B 3 H W"],
) -> Float[Tensor, "V B O"]:
    """Run all views through the network in one pass, and through the head one by one."""
    pooled = backbone(views.flatten(0, 1)).pooled.unflatten(0, views.shape[:2])
    return torch.stack([head(view) for view in pooled])
