"""A trained network as an annotator: its classifier at every place, and a check of maps it wrote.

Shapes in this file:
    B    images
    C    classes
    D    embed dim
    N    patch tokens (N = h * w)
    H W  image in pixels
    h w  token grid
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone
from smallvit.teachers.score_maps import ScoreMaps


class Teacher(nn.Module):
    """Dense class probabilities of a frozen network.

    Pooling is left out and the classifier reads every token by itself: for a network that pools
    by the mean of its patch tokens, the mean of the dense logits is exactly its image logit. A
    token head annotates in place of the classifier, unless it was never trained: LV-ViT's starts
    at zero and stays there without token labels.

    Args:
        backbone: Trained network; it is put in evaluation mode.
        temperature: Logits are divided by it; above 1 makes the probabilities flatter.
        flip: Average the probabilities with those of the mirrored image, mirrored back.

    Raises:
        ConfigError: If the temperature is not above 0.
    """

    def __init__(
        self, backbone: AbstractBackbone, *, temperature: float = 1.0, flip: bool = False
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"the teacher's temperature must be above 0, got {temperature}")
        self.backbone = backbone.eval().requires_grad_(False)
        self.temperature = temperature
        self.flip = flip
        head = backbone.token_head
        self.has_silent_head = head is not None and not any(p.any() for p in head.parameters())

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return probabilities at every place; the channel axis sums to 1."""
        score_map = self._annotate(images)
        if not self.flip:
            return score_map
        return (score_map + self._annotate(images.flip(-1)).flip(-1)) / 2

    def _annotate(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        tokens = self.backbone(images)
        read = self.backbone.classify if self.has_silent_head else self.backbone.classify_tokens
        logits = read(tokens.patch).float() / self.temperature  # (B, N, C)
        return logits.softmax(dim=-1).mT.unflatten(2, tokens.grid)


# Of probabilities in [0, 1]. float16 keeps three digits of a listed one; matrix products of an
# image alone are rounded otherwise than those of a batch, in bf16 to three digits or two, in fp16,
# which has eight times as many steps between two numbers, to three or four.
TOLERANCE = {"fp32": 0.005, "bf16": 0.1, "fp16": 0.02}


def spot_check(
    teacher: Teacher,
    images: Iterable[Float[Tensor, "1 3 H W"]],
    maps: ScoreMaps,
    position: Int[Tensor, " B"],
    *,
    autocast: Callable[[], torch.autocast],
) -> float:
    """Return the largest difference between maps and the teacher's answer to the same images.

    Args:
        teacher: Which is said to have written them.
        images: Normalised, one at a time.
        maps: As read from the file.
        position: Places of these images in the split.
        autocast: Precision of the forward pass.

    Returns:
        Difference of a listed probability, or how far an unlisted class lies above a listed one;
        infinite where the grids differ.
    """
    worst = 0.0
    for image, place in zip(images, position, strict=True):
        with autocast():
            full = teacher(image).cpu()
        read = maps.dense(place[None])
        if read.shape != full.shape:
            return float("inf")
        listed = maps.index[place][None].long()
        own = full.gather(1, listed)
        difference = (read.gather(1, listed) - own).abs().max()
        above = full.scatter(1, listed, 0.0).amax(dim=1) - own.amin(dim=1)
        worst = max(worst, float(difference), float(above.max()))
    return worst
