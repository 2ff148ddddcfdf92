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

from smallvit.evaluate.classify import Batches
from smallvit.models.tokens import AbstractBackbone

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07


@torch.no_grad()
def extract_features(
    backbone: AbstractBackbone, batches: Batches, *, autocast: Callable[[], torch.autocast]
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Return the pooled features and labels of all images, in evaluation mode."""
    backbone.eval()
    features, labels = [], []
    for images, batch_labels in batches:
        with autocast():
            features.append(backbone(images).pooled.float())
        labels.append(batch_labels)
    return torch.cat(features), torch.cat(labels)


def knn_top1(
    bank: Float[Tensor, "N D"],
    bank_labels: Int[Tensor, " N"],
    features: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    num_classes: int,
) -> float:
    """Classify by the 20 nearest neighbours (all where the bank is smaller) in cosine similarity.

    A neighbour votes with weight exp(similarity / 0.07).

    Source:
        Wu et al., 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        https://arxiv.org/abs/1805.01978, section 3.4.
    """
    bank = F.normalize(bank, dim=1)
    k = min(NUM_NEIGHBOURS, len(bank))
    correct = 0
    for chunk, chunk_labels in zip(
        F.normalize(features, dim=1).split(1024), labels.split(1024), strict=True
    ):
        similarity, nearest = (chunk @ bank.T).topk(k, dim=1)
        weight = ((similarity - 1) / TEMPERATURE).exp()
        votes = chunk.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, bank_labels[nearest], weight)
        correct += int((votes.argmax(dim=1) == chunk_labels).sum())
    return correct / len(labels)
