"""Passing over a split once, each process over some of its batches.

Shapes in this file:
    N    images of a split
    B    images of a batch
    D    numbers of an image in the result
"""

from collections.abc import Callable, Iterable
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.models.tokens import AbstractBackbone, Tokens
from smallvit.parallel import processes

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def collect(
    backbone: AbstractBackbone,
    batches: Batches,
    read: Callable[[Tokens], Float[Tensor, "B D"]],
    *,
    autocast: Callable[[], torch.autocast],
    alone: bool = False,
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Return what a network says of all images, in order, and their labels.

    Batches are those of one process whatever the number of processes, so the result is the same to
    the last bit; no image is counted twice.

    Args:
        backbone: The network, which is put in evaluation mode.
        batches: Images and labels; in several processes a sequence, each batch but the last of the
            same size.
        read: Makes numbers of the tokens of each batch.
        autocast: Precision of the forward pass.
        alone: Whether this process does all of it and the others do other things.
    """
    backbone.eval()
    outputs, labels = [], []
    for images, batch_labels in batches if alone else processes.deal(batches):
        with autocast():
            outputs.append(read(backbone(images)).float())
        labels.append(batch_labels)
    if alone or processes.count() == 1:
        return torch.cat(outputs), torch.cat(labels)
    device = next(iter(batches))[1].device
    whole = []
    for own in (outputs, labels):
        found = processes.gather([part.cpu() for part in own])
        dealt = (part for turn in zip_longest(*found) for part in turn if part is not None)
        whole.append(torch.cat(list(dealt)).to(device))
    return whole[0], whole[1]
