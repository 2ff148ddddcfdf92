"""Cross-entropy of every pixel, and the objective of a segmentation fine-tune.

Shapes in this file:
    B    images
    C    classes
    H W  image in pixels
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel.rows import current_rows
from smallvit.segment.batches import SegmentBatch
from smallvit.segment.data import IGNORED
from smallvit.segment.heads import AbstractSegmentHead, resize


def pixel_cross_entropy(
    logits: Float[Tensor, "B C H W"],
    masks: Int[Tensor, "B H W"],
    counted: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over all pixels of the batch that are not ignored.

    A batch without such a pixel costs nothing, where torch's own function returns NaN.

    Args:
        logits: Of each pixel.
        masks: Class indices; ``IGNORED`` where none counts.
        counted: What the sum is divided by; ``None`` is the pixels that are not ignored.
    """
    here = masks != IGNORED
    log_prob = logits.log_softmax(dim=1).gather(1, masks.where(here, 0)[:, None])[:, 0]
    return -(log_prob * here).sum() / (here.sum() if counted is None else counted).clamp(min=1e-6)


class SegmentObjective(AbstractObjective[SegmentBatch]):
    """Train a network and its head on the class of every pixel.

    Args:
        backbone: The network, which is exported.
        head: Reads the classes; it stays in the checkpoint.
    """

    def __init__(self, backbone: AbstractBackbone, head: AbstractSegmentHead) -> None:
        super().__init__()
        self.student = backbone
        self.head = head

    def logits(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H W"]:
        """Return class logits of every pixel, in float32."""
        logits = self.head(self.student, images)
        with torch.autocast(images.device.type, enabled=False):
            return resize(logits.float(), (images.shape[2], images.shape[3]))

    def forward(self, batch: SegmentBatch) -> StepOutput:
        """Classify the pixels."""
        logits = self.logits(batch.images)
        here = batch.masks != IGNORED
        rows, counted = current_rows(), here.sum().float()
        if rows is not None and batch.counted is not None:
            # Parts weigh as much as their rows, and pixels alike wherever they are.
            counted = batch.counted * rows.share
        right = ((logits.argmax(dim=1) == batch.masks) & here).sum()
        return StepOutput(
            loss=pixel_cross_entropy(logits, batch.masks, counted),
            metrics={"train/pixel_accuracy": right / counted.clamp(min=1e-6)},
        )
