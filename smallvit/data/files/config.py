"""Which images a run trains on, and how they are split: the section ``data`` of the settings."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError
from smallvit.data.files import registry

_OF_OWN_DATA = {
    "layout": "images of your own",
    "image_column": "tables and the Hub",
    "label_column": "tables and the Hub",
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        dataset: Name of a known dataset, or ``hf:owner/name@revision`` with ``#config`` where it
            has several, for one on the Hugging Face Hub; give this or ``path``.
        path: Folder of class folders, with or without train, val and test above them; a CSV,
            parquet or .npz file; or a folder of images without labels, for stage 1 alone.
        image_column: Column of a table that holds the images or their paths; null finds it by
            name and type.
        label_column: Column of a table that holds the labels; null finds it by name and type.
        image_size: Side that images are packed at, in pixels; null is a known dataset's own, or
            else the usual size nearest to the images (8 to 256).
        val_fraction: Part of the training images held out for validation where a dataset brings
            no validation split.
        test_fraction: Part of all images held out for testing where a dataset brings no test
            split.
        label_fraction: Part of the remaining training images whose labels teacher and stage 2 use;
            stage 1 sees all of them, without labels.
        split_seed: Seed of the cut, apart from the training seed.
        hflip: Whether mirrored images keep their class; null is what is known of the dataset
            (false for digits).
        grey_range: The two grey values that become black and white, for files of more than 8 bits;
            null is the smallest usual range that holds the values of all files.
        layout: What the folders of your own images are, where their names do not tell: classes
            (each is a class), unlabelled, or the folders of the splits, as in
            train=training_set,test=test_set; folders that are not named are not read.
        split_version: How images are cut into splits: 2 goes by what they show, 1 by their
            position, as runs of the first version did, which also scaled grey files one by one.
        allow_leak: Build on networks and score maps that may have seen held-out images of this
            data; it is recorded.
    """

    dataset: str | None = None
    path: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: Annotated[int | None, Range(ge=8, le=1024)] = None
    val_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=0.9)] = 0.2
    label_fraction: Annotated[float, Range(gt=0, le=1)] = 1.0
    split_seed: Annotated[int, Range(ge=0, lt=1 << 63)] = 0
    hflip: bool | None = None
    grey_range: tuple[float, float] | None = None
    layout: str | None = None
    split_version: Literal[1, 2] = 2
    allow_leak: bool = False

    def __post_init__(self) -> None:
        if self.dataset is not None and self.path is not None:
            raise ConfigError(
                f"data.dataset ({self.dataset!r}) and data.path ({str(self.path)!r}) exclude each "
                "other: give one"
            )
        if self.dataset is not None and not self.dataset.startswith("hf:"):
            registry.get_dataset_spec(self.dataset)
            for name, what in _OF_OWN_DATA.items():
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"data.{name} is for {what}, not for {self.dataset}: leave it out"
                    )
        if self.grey_range is not None:
            check_range(self.grey_range)
        if self.layout is not None:
            from smallvit.data.files.layout import parse_layout  # late: it brings numpy

            parse_layout(self.layout)


def check_range(grey_range: tuple[float, float]) -> None:
    """Refuse a range that nothing lies in.

    Raises:
        ConfigError: With the range.
    """
    low, high = grey_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"data.grey_range must be the values of black and white, the smaller one first, got "
            f"{low:g} and {high:g}"
        )
