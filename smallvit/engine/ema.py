"""A running average of the trained weights, which is what is scored and exported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """An exponential moving average of what an objective trains.

    In step t, counted from 0, the average keeps min(decay, (1 + t) / (10 + t)) of itself. So a run
    that is shorter than 1 / (1 - decay) steps averages its last tenth instead of weights that it
    started from: after 100 steps the first ones count for less than a millionth.

    torch's ``AveragedModel`` and timm's ``ModelEmaV3`` copy the whole module, momentum teachers
    included; here only what is trained has an average, and it takes the place of the weights to be
    scored. Momentum teachers (``core.momentum``) are networks of their own, which the method runs.

    Args:
        objective: Its parameters that have a gradient are averaged, and the running statistics of
            batch norms beside them; all else is used as it is.
        decay: Part of the average that a step keeps, in a long run.

    Source:
        TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``, for the warm-up.
    """

    def __init__(self, objective: nn.Module, decay: float) -> None:
        self.decay = decay
        found: dict[str, Tensor] = {
            name: p for name, p in objective.named_parameters() if p.requires_grad
        }
        parts = {name.partition(".")[0] for name in found}
        # Statistics of a batch norm go with the weights before it.
        for name, buffer in objective.named_buffers():
            if name.endswith(STATISTICS) and name.partition(".")[0] in parts:
                found[name] = buffer
        self.trained = list(found.values())
        self.average = {name: tensor.detach().clone() for name, tensor in found.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, in one call and without waiting for the device.

        Args:
            step: Steps of the run before this one.
        """
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.average.values()), self.trained, 1 - keep
        )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the objective have the averaged weights inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def take_over(self) -> None:
        """Give the objective the averaged weights for good."""
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            self.trained, list(self.average.values())
        )

    def _swap(self) -> None:
        for trained, average in zip(self.trained, self.average.values(), strict=True):
            trained.data, average.data = average.data, trained.data

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights by the name of the parameter."""
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the averaged weights of a checkpoint."""
        for name, average in self.average.items():
            average.copy_(state[name])
