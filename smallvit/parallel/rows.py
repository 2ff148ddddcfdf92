"""The rows of a step's batch that one forward pass sees.

A batch may be shared among processes and cut into micro-batches. Each part holds rows and their
mirror images, since an image is mixed with the one at the mirrored place; so every part can be
mixed by itself, and the step is that of the whole batch.

Shapes in this file:
    b    rows of a part
    B    rows of the whole batch
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.parallel import processes


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Part of a batch.

    Attributes:
        index: Positions in the whole batch.
        total: Rows of the whole batch.
    """

    index: Int[Tensor, " b"]
    total: int

    @property
    def share(self) -> float:
        """Part of the whole batch, in (0, 1]."""
        return len(self.index) / self.total


_current: Rows | None = None


def current_rows() -> Rows | None:
    """Return the rows that the forward pass at hand sees; ``None`` is the whole batch."""
    return _current


@contextmanager
def seeing(rows: Rows | None) -> Iterator[None]:
    """Let the forward passes inside know which rows they see."""
    global _current
    before, _current = _current, rows
    try:
        yield
    finally:
        _current = before


def mirrored_part(total: int, number: int, parts: int) -> list[int]:
    """Return the rows of one part: a run of the first half and its mirror images, in order.

    Args:
        total: Rows of the batch; the one in the middle of an odd number is its own mirror image.
        number: Which part, from 0.
        parts: How many there are, at most half of the rows, rounded up.
    """
    half = (total + 1) // 2
    lower = range(half * number // parts, half * (number + 1) // parts)
    return [*lower, *(total - 1 - i for i in reversed(lower) if 2 * i != total - 1)]


def own_rows(total: int, device: torch.device) -> Rows | None:
    """Return the rows of a batch that this process computes; ``None`` is all, where it is alone."""
    if processes.count() == 1:
        return None
    index = mirrored_part(total, processes.number(), processes.count())
    return Rows(index=torch.tensor(index, device=device), total=total)


def cut(
    size: int, most: int | None, rows: Rows | None, device: torch.device
) -> Sequence[tuple[Int[Tensor, " _"] | None, Rows | None]]:
    """Cut the rows of this process into micro-batches of nearly the same size.

    Args:
        size: Rows of this process.
        most: Rows of a micro-batch, at most; ``None`` does not cut. A pair of a row and its mirror
            image is not parted, so that a micro-batch has two rows at least.
        rows: Which ones they are; ``None`` is the whole batch.
        device: Where the indices go.

    Returns:
        For each micro-batch its positions among the rows of this process, and its rows. ``None`` is
        all of them.
    """
    pairs = (size + 1) // 2
    parts = 1 if most is None or most >= size else min(-(-pairs // max(most // 2, 1)), pairs)
    if parts == 1:
        return [(None, rows)]
    found = []
    for number in range(parts):
        position = torch.tensor(mirrored_part(size, number, parts), device=device)
        index, total = (position, size) if rows is None else (rows.index[position], rows.total)
        found.append((position, Rows(index=index, total=total)))
    return found


def gather(values: Float[Tensor, "*at b D"]) -> Float[Tensor, "*at B D"]:
    """Put the rows of all processes together, in the order of the whole batch.

    Gradients come back to each: a loss of the whole batch is computed in every process, and weighs
    there as much as the process's part of the rows.
    """
    if _current is None or processes.count() == 1:
        return values
    whole = values.new_zeros(*values.shape[:-2], _current.total, values.shape[-1])
    return processes.add_up(whole.index_copy(-2, _current.index, values))
