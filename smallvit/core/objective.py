"""The seam between a training stage and the engine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class Batch(Protocol):
    """What a step is taken on."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def take(self, rows: Int[Tensor, " _"], /) -> Any:
        """Return some of its images as a batch of the same kind."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one forward pass of an objective returns.

    Attributes:
        loss: Scalar to call ``backward`` on.
        metrics: Detached scalars for the log, by name (``"train/loss_token"``).
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


class AbstractObjective(nn.Module, ABC, Generic[BatchT]):
    """One training stage: batch in, loss and metrics out.

    It owns every module that the stage needs (student, heads, momentum teacher), so that its
    ``state_dict`` is the whole checkpoint of the stage, and its trained parameters are those
    with ``requires_grad`` when it is built. A batch says where in the run it belongs, so an
    objective keeps no clock of its own.

    Attributes:
        compares_images: Whether the loss compares the images of a batch with each other. Else it is
            their mean, so that a batch can be cut into micro-batches.
    """

    compares_images: bool = False

    @abstractmethod
    def forward(self, batch: BatchT) -> StepOutput:
        """Run the forward pass of one step."""

    def before_update(self) -> None:
        """Add up over the processes what ``after_step`` moves by.

        It is called once a step, while nothing has changed yet: where a message fails, the step can
        be taken again.
        """

    def after_step(self, progress: float) -> None:
        """Update what is not trained by gradient, such as a momentum teacher.

        It is called once a step, where ``forward`` is called for each of its micro-batches.

        Args:
            progress: Fraction of training done, in [0, 1].
        """
