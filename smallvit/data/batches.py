"""What a stage hands to its objective: named, typed batches.

Shapes in this file:
    V    views of one image
    B    images
    C    classes
    H W  view in pixels
    h w  token grid
"""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """Views of unlabelled images for stage 1; no label comes near it.

    Attributes:
        global_views: Large views, normalised.
        local_views: Small views, normalised; ``None`` where a method uses none.
        epoch: Passes over the data before this step.
        progress: Fraction of training done before this step, in [0, 1).
        mask_draws: Uniform numbers in [0, 1) of each image, for a method that masks; ``None`` for
            one that does not.
    """

    global_views: Float[Tensor, "V B 3 H W"]
    local_views: Float[Tensor, "L B 3 h w"] | None
    epoch: float
    progress: float
    mask_draws: Float[Tensor, "B n"] | None = None

    def __len__(self) -> int:
        """Count the images."""
        return self.global_views.shape[1]

    def take(self, rows: Int[Tensor, " b"]) -> "ViewBatch":
        """Return the views of some images."""
        return replace(
            self,
            global_views=self.global_views[:, rows],
            local_views=None if self.local_views is None else self.local_views[:, rows],
            mask_draws=None if self.mask_draws is None else self.mask_draws[rows],
        )


@dataclass(frozen=True, kw_only=True)
class TokenBox:
    """A box on the token grid, in tokens: rows [top, bottom), columns [left, right).

    Attributes:
        top: First row inside.
        left: First column inside.
        bottom: First row below.
        right: First column to the right.
        grid: The token grid (h, w).
    """

    top: int
    left: int
    bottom: int
    right: int
    grid: tuple[int, int]

    @property
    def area(self) -> int:
        """Tokens inside."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def share(self) -> float:
        """Part of the grid inside."""
        return self.area / (self.grid[0] * self.grid[1])

    def on(self, grid: tuple[int, int]) -> "TokenBox":
        """Return the same part of the image as a box on a finer grid.

        Args:
            grid: Rows and columns, each a multiple of those of the box's own grid.
        """
        if grid == self.grid:
            return self
        rows, columns = grid[0] // self.grid[0], grid[1] // self.grid[1]
        assert (rows * self.grid[0], columns * self.grid[1]) == grid, (self.grid, grid)
        return TokenBox(
            top=rows * self.top,
            left=columns * self.left,
            bottom=rows * self.bottom,
            right=columns * self.right,
            grid=grid,
        )


@dataclass(frozen=True, kw_only=True)
class LabeledBatch:
    """Augmented images with their labels for stage 2 and for training a teacher.

    Attributes:
        images: Normalised.
        labels: Class indices.
        partner_share: Part of each image that CutMix or MixUp took from its partner, the image at
            the mirrored place of the batch; ``None`` mixes nothing. The images are mixed already.
        score_maps: Teacher probabilities over the student's token grid, cropped and moved and
            mixed like the image; ``None`` without token labels.
        mix_box: Tokens that each image takes from its partner; ``None`` mixes nothing.
        progress: Fraction of training done before this step, in [0, 1).
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    partner_share: Float[Tensor, " B"] | None = None
    score_maps: Float[Tensor, "B C h w"] | None = None
    mix_box: TokenBox | None = None
    progress: float = 0.0

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def take(self, rows: Int[Tensor, " b"]) -> "LabeledBatch":
        """Return some images, of which each has its partner among them."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            partner_share=None if self.partner_share is None else self.partner_share[rows],
            score_maps=None if self.score_maps is None else self.score_maps[rows],
        )
