"""Cross-entropy of every pixel, and the scores of a segmentation, from one confusion matrix.

Shapes in this file:
    B    images
    S    images of a split
    C    classes; of the matrix, the rows are the truth and the columns the prediction
    H W  image in pixels
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel import processes
from smallvit.parallel.rows import current_rows
from smallvit.segment.batches import SegmentBatch, eval_batches
from smallvit.segment.data import IGNORED, SegmentData
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


EVAL_BATCH = 64


def count_confusion(
    truth: Int[Tensor, "B H W"], predicted: Int[Tensor, "B H W"], num_classes: int
) -> Int[Tensor, "C C"]:
    """Count the pixels of each true and predicted class; ignored ones are left out.

    Args:
        truth: Class indices; ``IGNORED`` where none counts.
        predicted: Class indices.
        num_classes: C.
    """
    # Ignored pixels go to a cell of their own: choosing the others would wait for the device.
    cell = truth * num_classes + predicted
    cell = torch.where(truth == IGNORED, num_classes**2, cell).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=cell.device)
    counts.scatter_add_(0, cell, torch.ones_like(cell))
    return counts[:-1].unflatten(0, (num_classes, num_classes))


def class_ious(confusion: Int[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """Return each class's intersection over union, in [0, 1]; NaN where it is nowhere.

    Args:
        confusion: Pixels by true and predicted class.
    """
    matrix = confusion.double()
    both = matrix.diagonal()
    return both / (matrix.sum(dim=0) + matrix.sum(dim=1) - both)


def segment_metrics(confusion: Int[Tensor, "C C"]) -> dict[str, float]:
    """Return ``miou`` and ``pixel_accuracy``, in [0, 1].

    A class that is in neither truth nor prediction is left out of the mean.

    Args:
        confusion: Pixels by true and predicted class, at least one.
    """
    accuracy = confusion.diagonal().sum() / confusion.sum()
    return {
        "miou": float(class_ious(confusion).nanmean()),
        "pixel_accuracy": float(accuracy),
    }


@torch.no_grad()
def evaluate_segmentation(
    objective: SegmentObjective,
    data: SegmentData,
    split: str,
    autocast: Callable[[], torch.autocast],
) -> Int[Tensor, "C C"]:
    """Return the confusion matrix of a trained network over a split.

    Args:
        objective: In evaluation mode.
        data: Images and masks.
        split: Which of them.
        autocast: Precision of the forward pass.
    """
    total = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    total = total.to(data.masks.device)
    for batch in processes.deal(eval_batches(data, data.dataset.splits[split], EVAL_BATCH)):
        with autocast():
            predicted = objective.logits(batch.images).argmax(dim=1)
        total += count_confusion(batch.masks, predicted, data.num_classes)
    return processes.add_up_(total)


def majority_confusion(
    train: Int[Tensor, "B H W"], held_out: Int[Tensor, "S H W"], num_classes: int
) -> Int[Tensor, "C C"]:
    """Return the confusion matrix of calling every pixel the most frequent class of training.

    Args:
        train: Masks of the training images.
        held_out: Masks to score on.
        num_classes: C.
    """
    counts = torch.bincount(train.flatten(), minlength=IGNORED + 1)[:num_classes]
    return count_confusion(held_out, torch.full_like(held_out, int(counts.argmax())), num_classes)
