"""Mean intersection over union and pixel accuracy, from one confusion matrix.

Shapes in this file:
    B    images
    C    classes; of the matrix, the rows are the truth and the columns the prediction
    H W  image in pixels
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.parallel import processes
from smallvit.segment.batches import SegmentBatch
from smallvit.segment.data import IGNORED
from smallvit.segment.objective import SegmentObjective


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
    batches: Iterable[SegmentBatch],
    *,
    num_classes: int,
    autocast: Callable[[], torch.autocast],
) -> Int[Tensor, "C C"]:
    """Return the confusion matrix of a trained network over some images.

    Args:
        objective: In evaluation mode.
        batches: At least one.
        num_classes: C.
        autocast: Precision of the forward pass.
    """
    device = next(objective.parameters()).device
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    for batch in processes.deal(batches):
        with autocast():
            predicted = objective.logits(batch.images).argmax(dim=1)
        total += count_confusion(batch.masks, predicted, num_classes)
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
