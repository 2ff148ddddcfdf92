"""The order in which the steps of a run see the images of a split.

Shapes in this file:
    N    images of a split
    B    images of a step
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from smallvit.core import rng
from smallvit.parallel.rows import own_rows

BatchT = TypeVar("BatchT")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The samples of one step that this process sees.

    Attributes:
        position: Of each sample in its split.
        epoch: Key of each sample's randomness beside its position: the pass over the data, counted
            for each repetition of a sample apart.
    """

    position: Int[Tensor, " B"]
    epoch: Int[Tensor, " B"]


class Order:
    """The order in which the steps of a run see the samples of a split.

    The passes over the data follow each other without a gap: step ``t`` takes the next
    ``batch_size`` samples, so every pass sees each sample once and no remainder is dropped. With
    ``repeats``, each sample comes that often in a row, each time with randomness of its own, and a
    pass is that much longer.

    Args:
        size: Samples of the split.
        batch_size: Samples of a step.
        seed: Seed of the run.
        device: Where the indices are wanted.
        repeats: Times in a row that each sample comes.

    Source:
        Hoffer et al., 2020, Augment Your Batch, https://arxiv.org/abs/1901.09335.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, device: torch.device, *, repeats: int = 1
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.repeats = repeats
        self.rows = own_rows(batch_size, device)
        self._pass: tuple[int, Tensor] | None = None

    def num_steps(self, epochs: float) -> int:
        """Return the steps that see ``epochs`` times ``size`` samples, at least 1."""
        return max(1, round(epochs * self.size / self.batch_size))

    @property
    def own_batch_size(self) -> int:
        """Samples of a step that this process sees."""
        return self.batch_size if self.rows is None else len(self.rows.index)

    def draw(self, step: int) -> Draw:
        """Return the samples of one step that this process sees."""
        size, repeats = self.size, self.repeats
        # Slots of the run: slot s is repetition s % repeats of sample s // repeats.
        slot = torch.arange(self.batch_size, device=self.device) + step * self.batch_size
        first = step * self.batch_size // repeats
        last = ((step + 1) * self.batch_size - 1) // repeats
        positions = []
        for number in range(first // size, last // size + 1):
            start = number * size
            positions.append(self._order(number)[max(first - start, 0) : last + 1 - start])
        if self.rows is not None:
            slot = slot[self.rows.index]
        sample = slot // repeats
        return Draw(
            position=torch.cat(positions)[sample - first],
            epoch=sample // size * repeats + slot % repeats,
        )

    def _order(self, epoch: int) -> Int[Tensor, " size"]:
        if self._pass is None or self._pass[0] != epoch:
            order = rng.permutation(self.seed, "order", epoch, self.size, self.device)
            self._pass = (epoch, order)
        return self._pass[1]


class InOrder(Sequence[BatchT]):
    """Batches of consecutive images of a split, each made when it is asked for.

    Args:
        make: Makes a batch of the images at some positions.
        position: Of all images.
        batch_size: Images of a batch; the last one may have fewer.
    """

    def __init__(
        self, make: Callable[[Tensor], BatchT], position: Int[Tensor, " N"], batch_size: int
    ) -> None:
        self.make = make
        self.positions = position.split(batch_size) if len(position) else ()

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.positions)

    def __getitem__(self, number: int) -> BatchT:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one batch."""
        return self.make(self.positions[number])
