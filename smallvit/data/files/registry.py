"""The datasets that smallvit knows by name, one entry each.

An entry is a record of facts, not code: adding a dataset means adding an entry to
``datasets.toml`` and, if its files have a layout of their own, a reader in ``official.py``.
"""

import re
import shlex
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.config import AutoAugmentPolicy


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One official file of a dataset.

    Attributes:
        name: File name in the data folder.
        urls: Addresses in the order to try; all of them serve the same bytes.
        md5: Checksum of those bytes.
        target: What it becomes, as a path below the data folder: the folder or file it unpacks to,
            or its own name where it is used as it is.
        size: Length in bytes, where it is known.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    target: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about one image-classification dataset.

    Attributes:
        name: Name on the command line and in result tables.
        num_classes: Number of classes.
        num_train: Images in the official training split, or in all where there is one split.
        num_test: Images in the official test split; 0 where a test split is cut.
        image_size: Side that the images are packed at, in pixels; their own where they are square.
        hflip: Whether a mirrored image keeps its class; digits do not.
        citation: Paper that introduced the dataset.
        license: Terms under which the images may be used, as the source states them.
        page: Where the dataset is described and can be had by hand.
        num_val: Images in the official validation split; 0 where it is cut from train.
        files: Official files; none where the images come with a library or from ``hub``.
        hub: ``owner/name@revision`` of a parquet copy on the Hugging Face Hub, for a dataset
            without official files to download.
        autoaugment: Which of AutoAugment's published policies suits it.
        shares_images_with: Other data sets that it holds images of, in any of its splits.
        class_names: Names of its class folders, where nothing in its files lists them.
    """

    name: str
    num_classes: int
    num_train: int
    num_test: int
    image_size: int
    hflip: bool
    citation: str
    license: str
    page: str
    num_val: int = 0
    files: tuple[RemoteFile, ...] = ()
    hub: str | None = None
    autoaugment: AutoAugmentPolicy = "imagenet"
    shares_images_with: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def _read_entry(name: str, facts: dict[str, Any]) -> DatasetSpec:
    files = [RemoteFile(**{**file, "urls": tuple(file["urls"])}) for file in facts.pop("files", ())]
    facts = {key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()}
    return DatasetSpec(name=name, files=tuple(files), **facts)


DATASETS: dict[str, DatasetSpec] = {
    name: _read_entry(name, facts)
    for name, facts in tomllib.loads(
        Path(__file__).with_name("datasets.toml").read_text("utf-8")
    ).items()
}


def sharing_dataset(text: str) -> str | None:
    """Return which of the data sets that share images a text speaks of, in any spelling, if any.

    Args:
        text: Name of a data set, a file or a run, such as ``my-cifar-10``.
    """
    sharing = [spec for spec in DATASETS.values() if spec.shares_images_with]
    for name in [name for spec in sharing for name in (spec.name, *spec.shares_images_with)]:
        spelling = re.sub(r"(?=\d)", "[-_ ]?", name, count=1)
        if re.search(rf"(?<![a-z0-9]){spelling}(?![0-9])", text, re.IGNORECASE):
            return name
    return None


def get_dataset_spec(name: str) -> DatasetSpec:
    """Look up a dataset by name.

    Raises:
        UnknownNameError: If no entry has that name; the message lists those there are.
        ConfigError: If it is the path of a file or folder.
    """
    if name in DATASETS:
        return DATASETS[name]
    with suppress(OSError, ValueError):  # longer than a path can be, or with a null character
        if Path(name).exists():
            raise ConfigError(
                f"unknown dataset {name!r}, but that is a path here: give --data "
                f"{shlex.quote(name)}, in Python data={name!r}"
            )
    raise UnknownNameError("dataset", name, DATASETS)
