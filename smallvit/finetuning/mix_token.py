"""MixToken: mix two images after the patch embedding, so that every token is one image's own.

Shapes in this file:
    B    images
    h w  token grid
"""

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.data.batches import TokenBox


def mix_tokens(grid: Float[Tensor, "B h w X"], box: TokenBox) -> Float[Tensor, "B h w X"]:
    """Take the tokens inside ``box`` from the partner, which is the batch in reverse order.

    Applied to embedded patches and to score maps alike, so that each token keeps meeting its own
    image's label. An image in the middle of an odd batch is its own partner. Where a network ends
    in fewer tokens than it begins with (Swin, most CNNs), the box on its first grid is the same
    part of the image; there tokens at its edge have seen both images.

    Args:
        grid: Anything laid out on the token grid or a finer one, channels last.
        box: The same box for the whole batch.

    Source:
        Jiang et al., 2021, https://arxiv.org/abs/2104.10858, section 3.3;
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:189-221, which mixes the inputs and
        un-mixes the outputs; mixing the targets is the same loss.
    """
    box = box.on((grid.shape[1], grid.shape[2]))
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    mixed = grid.clone()
    mixed[:, rows, columns] = grid[:, rows, columns].flip(0)
    return mixed


def mix_labels(labels: Float[Tensor, "B C"], box: TokenBox) -> Float[Tensor, "B C"]:
    """Mix image labels by the part of the grid that each image really has after clipping."""
    return torch.lerp(labels, labels.flip(0), box.share)
