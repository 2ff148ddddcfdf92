"""Score maps made in the step, without a file: by a frozen teacher, or by the student's average.

Shapes in this file:
    B    images
    C    classes
    H W  image in pixels
    h w  token grid
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.momentum import update_momentum
from smallvit.models.tokens import AbstractBackbone
from smallvit.teachers.teacher import Teacher


class OnlineTeacher:
    """A frozen teacher that sees each batch as the student does, augmented and mixed.

    No module, so that no checkpoint holds its weights: they lie in the teacher's own run.

    Args:
        teacher: On the device.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        """Return probabilities on the student's token grid."""
        return fit_grid(self.teacher(images), grid)


class EmaTeacher(nn.Module):
    """A running average of the student, which labels its patches.

    Args:
        student: The network; the average starts as its copy.
        token_head: Its classifier of patch tokens outside of it; ``None`` where it has its own.
    """

    def __init__(self, student: AbstractBackbone, token_head: nn.Module | None) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(student).requires_grad_(False)
        self.token_head = copy.deepcopy(token_head)
        if self.token_head is not None:
            self.token_head.requires_grad_(False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        """Return probabilities on the student's token grid."""
        self.backbone.eval()
        tokens = self.backbone(images)
        read = self.token_head or self.backbone.classify_tokens
        prob = read(tokens.patch).float().softmax(dim=-1)  # (B, N, C)
        return fit_grid(prob.mT.unflatten(2, tokens.grid), grid)

    def update(
        self, student: AbstractBackbone, token_head: nn.Module | None, momentum: float
    ) -> None:
        """Move towards the student."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.backbone, student)]
        if self.token_head is not None and token_head is not None:
            pairs.append((self.token_head, token_head))
        update_momentum(pairs, momentum)


def fit_grid(
    score_maps: Float[Tensor, "B C _ _"], grid: tuple[int, int]
) -> Float[Tensor, "B C h w"]:
    """Resample score maps to a grid; each place still sums to 1."""
    if score_maps.shape[2:] == grid:
        return score_maps
    return F.interpolate(score_maps, grid, mode="bilinear", antialias=True)
