"""The bytes of a tensor, for sums that tell whether two are the same."""

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the values of a tensor as bytes, on the host, in the order of its indices."""
    values = tensor.detach().cpu().contiguous().flatten()
    return values.view(torch.uint8).numpy().data
