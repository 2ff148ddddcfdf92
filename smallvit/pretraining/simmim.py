"""Masked pixels in place: each final token draws the pixels of its own cell.

Shapes in this file:
    B    images
    M    cells that are hidden
    P    numbers in the pixels of a cell
    H W  image in pixels
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone, Features
from smallvit.pretraining.config import SimMimConfig
from smallvit.pretraining.masks import (
    as_mask,
    encode_masked,
    hide_pixels,
    mask_grid,
)
from smallvit.pretraining.method import AbstractPretraining


class SimMimObjective(AbstractPretraining[SimMimConfig]):
    """Network, mask token, one linear layer, and the absolute error on hidden pixels.

    It works with every architecture. Final tokens alone are trained: what only pools them, such
    as CaiT's class attention, stays as it was. So the mean of the patch tokens is watched.

    Args:
        backbone: The network.
        config: Settings.
        image_size: Side of the view, in pixels.

    Raises:
        ConfigError: If the final tokens do not divide the image and its patches.

    Source:
        As ``SimMimConfig``. The number of hidden cells is rounded to the nearest, theirs up.
        Hidden pixels are blackened before the stem, which theirs, without overlap, need not.
    """

    # No target reaches a class token at the end, or what pools the tokens.
    features: ClassVar[Features] = "patches"

    def __init__(
        self, backbone: AbstractBackbone, config: SimMimConfig, *, image_size: int
    ) -> None:
        super().__init__(backbone, config)
        self.grid, patch_dim = mask_grid(backbone, image_size, method=config.name)
        height, width = (image_size // cells for cells in self.grid)
        self.mask_token = nn.Parameter(torch.zeros(patch_dim))
        self.decoder = nn.Linear(backbone.embed_dim, 3 * height * width)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def mask_draws(self) -> int:
        """One a final token."""
        return self.grid[0] * self.grid[1]

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Predict the pixels of the cells that the network did not see."""
        assert batch.mask_draws is not None
        images = batch.global_views[0]
        hidden, _, target = hide_pixels(images, batch.mask_draws, self.grid, self.config.mask_ratio)
        return StepOutput(loss=F.l1_loss(self.predict(images, hidden), target))

    def predict(
        self, images: Float[Tensor, "B 3 H W"], hidden: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """Return the pixels of hidden cells as the others suggest them."""
        mask = as_mask(hidden, self.grid)
        tokens = encode_masked(self.student, images, mask, self.mask_token)
        return self.decoder(torch.take_along_dim(tokens.patch, hidden[..., None], dim=1)).float()
