"""Settings of segmentation; this file imports no torch, so that help is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.data.config import Fraction, check_bounds

HeadName = Literal["linear", "upernet-light"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What reads the classes.

    Attributes:
        name: ``linear`` is one matrix product on the final tokens; ``upernet-light`` joins several
            levels of the network.
        width: Channels of upernet-light; a quarter of the published 512.
        dropout: Channels of its last map that are left out in training, in [0, 1).
    """

    name: HeadName = "upernet-light"
    width: Annotated[int, Range(ge=8)] = 128
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ConfigError(f"head.width ({self.width}) must be a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class SegmentAugmentConfig:
    """The crop of training images; half of them are mirrored unless ``data.hflip`` is false.

    Attributes:
        scale: Area of the crop as a fraction of the image's.
        ratio: Aspect ratio of the crop, width over height.
    """

    scale: tuple[Fraction, Fraction] = (0.5, 1.0)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            check_bounds(f"augment.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SegmentDataConfig:
    """Which images and masks, and how they are split.

    Attributes:
        path: Folder of ``images/{train,val,test}/NAME.*`` and ``masks/{train,val,test}/NAME.png``.
        image_size: Side of the square that images are fitted into, in pixels; null is the usual
            size nearest to the images' longer sides (8 to 256).
        val_fraction: Part of the training images held out for validation where there is no val
            folder.
        test_fraction: Part of all training images held out for testing where there is no test
            folder.
        split_seed: Seed of the cut, apart from the training seed.
        hflip: Whether images are mirrored in training.
        split_version: 2 cuts, orders and fingerprints by content; 1 by the names of the images, as
            runs did that do not name a version.
        allow_leak: Start from a network that may have seen held-out images of this data; it is
            recorded.
    """

    path: Path | None = None
    image_size: Annotated[int | None, Range(ge=8, le=1024)] = None
    val_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.2
    split_seed: Annotated[int, Range(ge=0)] = 0
    hflip: bool = True
    split_version: Literal[1, 2] = 2
    allow_leak: bool = False
