"""What every method of stage 1 has in common.

Shapes in this file:
    V    views of one size
    B    images
    D    embed dim
    O    width of what a head returns
    H W  view in pixels
"""

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.momentum import update_momentum
from smallvit.core.objective import AbstractObjective
from smallvit.core.schedule import cosine
from smallvit.data.batches import ViewBatch
from smallvit.models.tokens import AbstractBackbone, Features

ConfigT = TypeVar("ConfigT")


class AbstractPretraining(AbstractObjective[ViewBatch], Generic[ConfigT]):
    """A method of stage 1: views in, loss out; no label comes near it.

    Args:
        backbone: The network to train.
        config: Settings.
        image_size: Side of the images, in pixels, for a method that needs it.

    Attributes:
        features: What of an image is watched and scored: what the network pools, or the patch
            tokens of a method that trains no more than these.
    """

    features: ClassVar[Features] = "pooled"

    def __init__(
        self, backbone: AbstractBackbone, config: ConfigT, *, image_size: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.student = backbone

    @property
    def exported(self) -> AbstractBackbone:
        """The network that is watched, drawn and exported: the student but for dino and ibot."""
        return self.student

    @property
    def mask_draws(self) -> int:
        """Uniform numbers an image that each batch must bring for masks."""
        return 0

    @property
    def max_entropy(self) -> float | None:
        """Entropy of uniform targets, in nats; ``None`` where ``train/teacher_entropy`` is none."""
        return None


def check_batch_size(method: str, batch_size: int, num_images: int) -> None:
    """Refuse batches of one image, and batches that hold an image twice.

    Args:
        method: Which method compares the images of a batch.
        batch_size: B.
        num_images: Images to train on.

    Raises:
        ConfigError: Says what to set.
    """
    if batch_size < 2 or batch_size > num_images:
        raise ConfigError(
            f"{method} compares the images of a batch with each other: --batch-size {batch_size} "
            f"must be between 2 and the {num_images:,} training images"
        )


def move_teacher(
    copies: Sequence[nn.Module], students: Sequence[nn.Module], momentum: float, progress: float
) -> None:
    """Move a momentum teacher towards the student, more slowly as training goes on.

    Args:
        copies: The teacher's network and head.
        students: Those of the student.
        momentum: Part of the teacher that is kept at the start; it rises to 1 along a cosine.
        progress: Fraction of training done, in [0, 1].
    """
    update_momentum(list(zip(copies, students, strict=True)), cosine(momentum, 1.0, progress))


def project(
    backbone: AbstractBackbone, head: nn.Module, views: Float[Tensor, "V B 3 H W"]
) -> Float[Tensor, "V B O"]:
    """Run all views of one size through network and head in one pass."""
    pooled = backbone(views.flatten(0, 1)).pooled
    return head(pooled).float().unflatten(0, views.shape[:2])
