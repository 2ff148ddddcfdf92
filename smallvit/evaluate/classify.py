"""Accuracy of a classifier.

Shapes in this file:
    N    images of a split
    C    classes
    k    classes of an image that are named, at most five
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.evaluate.config import Readout
from smallvit.evaluate.readout import read_logits
from smallvit.evaluate.sharing import Batches, collect
from smallvit.models.tokens import AbstractBackbone, Tokens


def predict_logits(
    backbone: AbstractBackbone,
    batches: Batches,
    *,
    autocast: Callable[[], torch.autocast],
    readout: Readout | None = None,
    alone: bool = False,
) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    """Return the logits and labels of all images, with the network in evaluation mode.

    Args:
        backbone: The network.
        batches: Images and their labels.
        autocast: Precision of the forward pass.
        readout: What to make the logits of; ``None`` is what the network itself returns.
        alone: Whether this process does all of it and the others do other things.
    """

    def read(tokens: Tokens) -> Tensor:
        return (
            backbone.logits(tokens) if readout is None else read_logits(backbone, tokens, readout)
        )

    return collect(backbone, batches, read, autocast=autocast, alone=alone)


def classification_metrics(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in [0, 1], the cross-entropy in nats, and the image count.

    With five classes or fewer, top-5 is 1.
    """
    top = _likeliest(logits) == labels[:, None]
    return {
        "top1": top[:, 0].double().mean().item(),
        "top5": top.any(dim=1).double().mean().item(),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "n": len(labels),
    }


def predicted_classes(logits: Float[Tensor, "N C"]) -> Int[Tensor, " N"]:
    """Return the likeliest class of each image; of equal logits, the one that top-1 counts."""
    return _likeliest(logits)[:, 0]


def confusion_matrix(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, "C C"]:
    """Count the images of each true class, in rows, by predicted class, in columns."""
    num_classes = logits.shape[1]
    pairs = labels * num_classes + predicted_classes(logits)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_per_class(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """Return the accuracy of each class, averaged over the classes that have images."""
    confusion = confusion_matrix(logits, labels).double()
    images = confusion.sum(dim=1)
    accuracy = confusion.diagonal() / images.clamp(min=1)
    return (accuracy.sum() / (images > 0).sum()).item()


def _likeliest(logits: Float[Tensor, "N C"]) -> Int[Tensor, "N k"]:
    # One choice for all metrics: argmax may name another of two equal logits, which bf16 can make.
    return logits.topk(min(5, logits.shape[1]), dim=1).indices
