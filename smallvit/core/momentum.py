"""Running averages of networks: momentum teachers of stage 1, the student's average in stage 2."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_momentum(pairs: Sequence[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    """Move momentum copies towards their students, all parameters in one call.

    Args:
        pairs: Each copy with its student.
        momentum: Part of the copy that is kept.
    """
    copies: list[Tensor] = [p for copy, _ in pairs for p in copy.parameters()]
    students: list[Tensor] = [p for _, student in pairs for p in student.parameters()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        copies, students, 1 - momentum
    )
    for copy, student in pairs:
        # Running statistics of batch norms are averages already.
        for own, new in zip(copy.buffers(), student.buffers(), strict=True):
            own.copy_(new)
