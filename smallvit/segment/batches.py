"""Batches of images and masks, cropped and mirrored together on the device.

Shapes in this file:
    B    images
    H W  image in pixels
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core import rng
from smallvit.data import augment, geometry
from smallvit.data.dataset import Split, channel_tensors
from smallvit.data.order import InOrder, Order
from smallvit.parallel import processes
from smallvit.segment.config import SegmentAugmentConfig
from smallvit.segment.data import IGNORED, SegmentData


@dataclass(frozen=True, kw_only=True)
class SegmentBatch:
    """Images with the class of each pixel.

    Attributes:
        images: Normalised.
        masks: Class indices; ``IGNORED`` where none counts.
        counted: Pixels of the whole step that are not ignored, of which these images may be a part;
            ``None`` where the loss is not asked for.
    """

    images: Float[Tensor, "B 3 H W"]
    masks: Int[Tensor, "B H W"]
    counted: Float[Tensor, ""] | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def take(self, rows: Int[Tensor, " b"]) -> "SegmentBatch":
        """Return some images with their masks."""
        return SegmentBatch(images=self.images[rows], masks=self.masks[rows], counted=self.counted)


class SegmentBatches:
    """Training batches by step: a batch depends on nothing but the seed and the step.

    Args:
        data: On the training device.
        order: Which images each step takes.
        config: The augmentation.
    """

    def __init__(self, data: SegmentData, order: Order, config: SegmentAugmentConfig) -> None:
        self.data = data
        self.split = data.dataset.splits["train"]
        self.order = order
        self.config = config
        self.mean, self.std = channel_tensors(data.dataset, order.device)

    def __call__(self, step: int) -> SegmentBatch:
        """Make the batch of one step."""
        draw = self.order.draw(step)
        side = self.data.dataset.image_size
        where = geometry.sample_resized_crop(
            rng.uniform(self.order.seed, "segment", draw.epoch, draw.position, 5),
            scale=self.config.scale,
            ratio=self.config.ratio,
            hflip=self.data.dataset.hflip,
            image_size=side,
        )
        images = augment.to_float(self.split.take(draw.position))
        images = geometry.resample(images, where, (side, side), kernel="bicubic", fill="edge")
        images = images.contiguous().clamp_(0, 1)  # the kernel overshoots
        masks = crop_masks(self.data.take_masks(self.split, draw.position).long(), where)
        return SegmentBatch(
            images=augment.normalize(images, self.mean, self.std),
            masks=masks,
            counted=processes.add_up_((masks != IGNORED).sum().float()),
        )


def crop_masks(masks: Int[Tensor, "B H W"], where: geometry.Geometry) -> Int[Tensor, "B H W"]:
    """Cut each mask's box out as its image's was, by nearest neighbour.

    Args:
        masks: Class indices.
        where: Boxes inside the image, and mirror flags.
    """
    sign = torch.where(where.hflip, -1.0, 1.0)
    zero = torch.zeros_like(where.left)
    across = torch.stack([where.width * sign, zero, 2 * where.left + where.width - 1], dim=1)
    down = torch.stack([zero, where.height, 2 * where.top + where.height - 1], dim=1)
    to_source = torch.stack([across, down], dim=1)  # (B, 2, 3)
    # Indices up to 255 are exact in float32.
    moved = geometry.warp(masks.float()[:, None], to_source, nearest=True, fill="edge")
    return moved[:, 0].long()


def eval_batches(data: SegmentData, split: Split, batch_size: int) -> InOrder[SegmentBatch]:
    """Return a split once, in order, without augmentation; the last batch may be smaller."""
    device = split.index.device
    mean, std = channel_tensors(data.dataset, device)

    def make(position: Tensor) -> SegmentBatch:
        images = augment.normalize(augment.to_float(split.take(position)), mean, std)
        return SegmentBatch(images=images, masks=data.take_masks(split, position).long())

    return InOrder(make, torch.arange(len(split), device=device), batch_size)
