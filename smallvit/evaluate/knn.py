"""Accuracy of a weighted nearest-neighbour vote over frozen features.

Shapes in this file:
    N    images of the bank
    M    images to classify
    D    embed dim
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.errors import DataError
from smallvit.evaluate.config import NUM_NEIGHBORS, TEMPERATURE
from smallvit.evaluate.sharing import Batches, collect
from smallvit.models.tokens import AbstractBackbone, Features


def extract_features(
    backbone: AbstractBackbone,
    batches: Batches,
    *,
    autocast: Callable[[], torch.autocast],
    kind: Features = "pooled",
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Return the features and labels of all images, in evaluation mode.

    Args:
        backbone: The network.
        batches: Images and labels.
        autocast: Context of each forward pass.
        kind: What the classifier reads, or the mean of the patch tokens.
    """
    return collect(backbone, batches, lambda tokens: tokens.features(kind), autocast=autocast)


def knn_top1(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    num_classes: int,
    num_neighbors: int = NUM_NEIGHBORS,
    temp: float = TEMPERATURE,
) -> float:
    """Classify by the nearest neighbours in cosine similarity; near ones count for more.

    Args:
        bank: Features of the images that vote.
        bank_labels: Their classes.
        features: Features of the images to classify.
        labels: Their true classes.
        num_classes: Number of classes.
        num_neighbors: Neighbours that vote; all where the bank is smaller.
        temp: A neighbour's weight is exp(similarity / temp).

    Returns:
        The fraction that is right.

    Raises:
        DataError: If there is no image in the bank, or none to classify.

    Source:
        Wu et al., 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        https://arxiv.org/abs/1805.01978, section 3.4; its 200 neighbours are for banks of a
        million images, 20 are DINO's (https://arxiv.org/abs/2104.14294, section 4.1).
    """
    if not len(bank) or not len(labels):
        raise DataError(
            f"k-NN needs labelled images: {len(bank)} in the bank, {len(labels)} to classify"
        )
    bank = F.normalize(bank, dim=1)
    k = min(num_neighbors, len(bank))
    correct = torch.zeros((), dtype=torch.int64, device=bank.device)
    for chunk, chunk_labels in zip(
        F.normalize(features, dim=1).split(1024), labels.split(1024), strict=True
    ):
        similarity, nearest = (chunk @ bank.T).topk(k, dim=1)
        weight = ((similarity - 1) / temp).exp()
        votes = chunk.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, bank_labels[nearest], weight)
        correct += (votes.argmax(dim=1) == chunk_labels).sum()
    return correct.item() / len(labels)
