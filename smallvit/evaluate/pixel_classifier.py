"""A classifier of pixels: what attacks, corruptions and foreign images are given to.

Shapes in this file:
    B    images
    N    images of a split
    C    classes
    H W  image in pixels
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from smallvit.data.augment import normalize, to_float
from smallvit.data.dataset import Split
from smallvit.models.measure import frozen
from smallvit.models.tokens import AbstractBackbone


class PixelClassifier(nn.Module):
    """A network with its normalisation inside, so that colours are changed where they are seen.

    It is put in evaluation mode.

    Args:
        backbone: Network with a classifier, on its device.
        mean: Per-channel mean that its inputs are normalised with, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: AbstractBackbone,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        device = next(backbone.parameters()).device
        self.register_buffer("mean", torch.tensor(mean, device=device), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device), persistent=False)
        self.eval()

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Return the logits that the network itself returns for colours in [0, 1]."""
        return self.backbone.logits(self.backbone(normalize(images, self.mean, self.std)))


def pixel_batches(
    split: Split, batch_size: int
) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
    """Walk a split once, in order: colours in [0, 1] and labels; the last batch may be smaller."""
    for position in torch.arange(len(split), device=split.index.device).split(batch_size):
        yield to_float(split.take(position)), split.labels[split.index[position]]


@torch.no_grad()
def predict_pixels(
    classifier: PixelClassifier,
    batches: Iterable[UInt8[Tensor, "B 3 H W"]],
    *,
    autocast: Callable[[], torch.autocast],
) -> Float[Tensor, "N C"]:
    """Return the logits of all images.

    Args:
        classifier: On the device of the images.
        batches: Images as bytes.
        autocast: Precision of the forward pass.
    """
    logits = []
    with frozen(classifier):
        for images in batches:
            with autocast():
                logits.append(classifier(to_float(images)).float())
    return torch.cat(logits)
