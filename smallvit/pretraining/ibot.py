"""Masked view prediction: dino, and the momentum teacher's patch tokens where the student's hide.

Shapes in this file:
    V    global views
    B    images
    N    tokens, row-major over the grid
    M    tokens that are hidden, in one of the views
    D    embed dim
    K    prototypes
"""

import torch
from jaxtyping import Bool, Float, Int
from lightly.loss import IBOTPlusPlusPatchLoss, KoLeoLoss
from torch import Tensor, nn

from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import current_rows, gather
from smallvit.pretraining.config import IbotConfig
from smallvit.pretraining.masks import (
    as_mask,
    encode_masked,
    mask_grid,
    num_block_draws,
    num_hidden,
    split_in_blocks,
)
from smallvit.pretraining.method import project
from smallvit.pretraining.prototypes import (
    AbstractPrototypes,
    PatchCenter,
    freeze_prototypes,
    target_metrics,
)


class IbotObjective(AbstractPrototypes[IbotConfig]):
    """Student, momentum teacher, one head each for images and tokens, and the sum of the losses.

    To the loss of dino comes the mean cross-entropy over hidden tokens, between what the student
    says of them and what the momentum teacher, which sees the whole view, says there.
    Views without a mask count as zero in that mean, as in iBOT: a patch term that knows nothing
    costs half of log K.

    Images and tokens share head and prototypes, as in the paper, where that was better than two of
    each; DINOv2 found the opposite at its own scale only.

    Args:
        backbone: The student; the momentum teacher starts as its copy.
        config: Settings.
        image_size: Side of the large views, in pixels.

    Raises:
        ConfigError: If the network's final tokens do not stand for whole patches.

    Source:
        As ``IbotConfig``. iBOT hides blocks of each view with probability one half; here of the
        first view in every other image and of the second in the rest, so that shapes are fixed.
        Masks lie on the grid of final tokens. The centre of the tokens is that of the hidden ones,
        as in DINOv2; iBOT's is that of all. Patches share the temperatures of images, as in the
        paper's runs.
    """

    def __init__(self, backbone: AbstractBackbone, config: IbotConfig, *, image_size: int) -> None:
        super().__init__(backbone, config)
        self.grid, patch_dim = mask_grid(backbone, image_size, method=config.name)
        self.hidden = num_hidden(self.grid[0] * self.grid[1], config.mask_ratio)
        self.mask_token = nn.Parameter(torch.zeros(patch_dim))
        # lightly's IBOTPatchLoss picks tokens by a mask of truth values, for which a GPU makes the
        # host wait; this one without a mask is the plain mean over those it is given.
        self.patch_criterion = IBOTPlusPlusPatchLoss(
            output_dim=config.num_prototypes,
            teacher_temp=config.teacher_temp,
            student_temp=config.student_temp,
            center_momentum=config.center_momentum,
        )
        self.patch_criterion.center = patch_center = PatchCenter(config)
        self.centers.append(patch_center)
        self.koleo = KoLeoLoss()
        self.compares_images = config.koleo_weight > 0

    @property
    def mask_draws(self) -> int:
        """Those of the rectangles and one a token."""
        return num_block_draws(self.grid)

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Compare the student's views and hidden tokens with the momentum teacher's."""
        assert batch.mask_draws is not None
        config, views = self.config, batch.global_views
        self.ema_teacher.eval()
        freeze_prototypes(self.student_head, batch.epoch < config.freeze_last_layer_epochs)
        position, _ = split_in_blocks(batch.mask_draws, self.grid, self.hidden)
        here = current_rows()
        row = torch.arange(len(position), device=position.device) if here is None else here.index
        second = row % 2 == 1  # the view with the mask
        mask = as_mask(position, self.grid)
        masks = torch.cat([mask & ~second[:, None, None], mask & second[:, None, None]])
        with torch.no_grad():
            tokens = self.ema_teacher(views.flatten(0, 1))
            teacher = self._describe(self.ema_teacher_head, tokens.pooled).unflatten(0, (2, -1))
            seen = self._describe(self.ema_teacher_head, pick(tokens.patch, position, second))
        tokens = encode_masked(self.student, views.flatten(0, 1), masks, self.mask_token)
        student = list(self._describe(self.student_head, tokens.pooled).unflatten(0, (2, -1)))
        guessed = self._describe(self.student_head, pick(tokens.patch, position, second))
        if batch.local_views is not None:
            student += project(self.student, self.student_head, batch.local_views)

        temp = config.target_temp(batch.epoch)
        metrics = target_metrics(teacher, self.criterion.center, temp)
        with torch.autocast(views.device.type, enabled=False):
            terms = {
                "cls": self.criterion(list(teacher), student, teacher_temp=temp),
                "patch": 0.5 * self.patch_criterion(seen, guessed, teacher_temp=temp),
            }
            loss = terms["cls"] + config.patch_weight * terms["patch"]
            if config.koleo_weight:
                # By view: two views of one image should be neighbours.
                pooled = gather(tokens.pooled.float().unflatten(0, (2, -1)))
                terms["koleo"] = self.koleo(pooled[0]) + self.koleo(pooled[1])
                loss = loss + config.koleo_weight * terms["koleo"]
        metrics |= {f"train/loss_{name}": term.detach() for name, term in terms.items()}
        return StepOutput(loss=loss, metrics=metrics)

    @staticmethod
    def _describe(head: nn.Module, features: Float[Tensor, "*at D"]) -> Float[Tensor, "*at K"]:
        """Apply a head to images or tokens; its batch norms take one axis of them."""
        return head(features.flatten(0, -2)).float().unflatten(0, features.shape[:-1])


def pick(
    patch: Float[Tensor, "_ N D"], position: Int[Tensor, "B M"], second: Bool[Tensor, " B"]
) -> Float[Tensor, "B M D"]:
    """Return the listed tokens of one of the two views of each image.

    Args:
        patch: Tokens of the first views of all images, then of the second.
        position: Which tokens.
        second: Whether they are of the image's second view.
    """
    views = patch.unflatten(0, (2, -1))
    chosen = torch.where(second[:, None, None], views[1], views[0])
    return torch.take_along_dim(chosen, position[..., None], dim=1)
