"""The official archives: CIFAR-10-C, CIFAR-100-C and Tiny-ImageNet-C.

Shapes in this file:
    N    images of a test split
    B    images of a batch
    H W  image in pixels
"""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from smallvit.core.errors import ConfigError, DataError, UnknownNameError, explained
from smallvit.data.dataset import Dataset
from smallvit.data.files.images import open_image, to_rgb
from smallvit.data.files.sources import find_files
from smallvit.evaluate.corruptions.parameters import ALL_CORRUPTIONS, CORRUPTIONS, SEVERITIES

LABELS = "labels"
# Where each lies, for messages: DOI 10.5281/zenodo.<number>.
ZENODO = {"cifar10": 2535967, "cifar100": 3555552, "tiny-imagenet": 2536630}

Read = Callable[[str, int, int, int], UInt8[np.ndarray, "B 3 H W"]]


@dataclass(frozen=True, kw_only=True)
class OfficialCorruptions:
    """An official archive whose files were checked.

    Attributes:
        path: Folder or tar file.
        names: Corruptions that are there: the 15, and those of the 4 extra ones that it has.
        labels: Class of each image of a cell, the same for all cells.
        read: Images of a corruption and severity, from one place to another.
    """

    path: Path
    names: tuple[str, ...]
    labels: Int[Tensor, " N"]
    read: Read

    def batches(
        self, name: str, severity: int, *, batch_size: int, device: torch.device
    ) -> Iterator[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
        """Yield images and labels of one corruption and severity, in the archive's order.

        Raises:
            UnknownNameError: If the archive does not have that corruption.
            ConfigError: If the severity is not 1 to 5.
            DataError: If an image cannot be read.
        """
        if name not in self.names:
            raise UnknownNameError(f"corruption of {self.path}", name, self.names)
        if severity not in SEVERITIES:
            raise ConfigError(f"severity must be 1 to 5, got {severity}")
        for start in range(0, len(self.labels), batch_size):
            stop = min(start + batch_size, len(self.labels))
            images = torch.from_numpy(self.read(name, severity, start, stop))
            yield images.to(device), self.labels[start:stop].to(device)


def open_official(path: Path, dataset: Dataset) -> OfficialCorruptions:
    """Open an official archive of corrupted test images and check it against the test split.

    Args:
        path: Folder, or uncompressed tar file, of CIFAR-10-C or CIFAR-100-C (``<name>.npy`` and
            ``labels.npy``); folder of Tiny-ImageNet-C (``<name>/<severity>/<class>/*.JPEG``).
        dataset: Data set whose test split was corrupted.

    Raises:
        DataError: If files are missing or broken, or the images or labels are not those of the
            test split, in number, size or order.

    Source:
        The layouts are those that make_cifar_c.py and make_tinyimagenet_c.py of
        hendrycks/robustness write. Tiny-ImageNet-C names its images otherwise than Tiny-ImageNet:
        there the number of images of each class is what can be checked.
    """
    test = dataset.splits["test"]
    labels = test.labels[test.index].cpu().long()
    if path.is_file() or any(path.glob("*.npy")):
        return _open_arrays(path, dataset, labels)
    if not path.is_dir():
        raise DataError(f"{path} is not there{_where(dataset)}")
    return _open_folders(path, dataset, labels)


def _where(dataset: Dataset) -> str:
    number = ZENODO.get(dataset.name)
    if number is None:
        return f": official archives are of {', '.join(ZENODO)}, not of {dataset.name}"
    return f": the archive of {dataset.name} is DOI 10.5281/zenodo.{number}"


def _names_of(path: Path, found: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    missing = [name for name in CORRUPTIONS if name not in found]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)} of the {len(CORRUPTIONS)} corruptions"
            f"{_where(dataset)}"
        )
    return tuple(name for name in ALL_CORRUPTIONS if name in found)


def _open_arrays(path: Path, dataset: Dataset, labels: Int[Tensor, " N"]) -> OfficialCorruptions:
    arrays = _map_arrays(path)
    names = _names_of(path, list(arrays), dataset)
    if LABELS not in arrays:
        raise DataError(f"{path} lacks {LABELS}.npy{_where(dataset)}")
    num, side, cells = len(labels), dataset.image_size, len(SEVERITIES)
    for name in names:
        array, wanted = arrays[name], (cells * num, side, side, 3)
        if array.shape != wanted or array.dtype != np.uint8:
            raise DataError(
                f"{path}: {name}.npy has shape {array.shape} and type {array.dtype}, not {wanted} "
                f"and uint8 as {num} test images of {side} px have{_where(dataset)}"
            )
    if not np.array_equal(arrays[LABELS], np.tile(labels.numpy(), cells)):
        raise DataError(
            f"{path}: {LABELS}.npy is not {cells} times the labels of the test split of "
            f"{dataset.name}{_where(dataset)}"
        )

    def read(name: str, severity: int, start: int, stop: int) -> np.ndarray:
        first = (severity - 1) * num
        part = arrays[name][first + start : first + stop]
        return np.ascontiguousarray(part.transpose(0, 3, 1, 2))

    return OfficialCorruptions(path=path, names=names, labels=labels, read=read)


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a folder, or those in a tar file where they lie: nothing is unpacked."""
    if path.is_dir():
        return {file.stem: _map_array(file) for file in sorted(path.glob("*.npy"))}
    fault = f"{path} is no uncompressed tar file"
    with (
        explained(lambda error: f"{fault} ({error}): unpack it", tarfile.TarError),
        tarfile.open(path, "r:") as archive,
    ):
        members = [each for each in archive if each.isfile() and each.name.endswith(".npy")]
    return {Path(each.name).stem: _map_array(path, each.offset_data) for each in members}


def _map_array(path: Path, offset: int = 0) -> np.ndarray:
    """Map the array whose header begins at a byte of a file."""
    broken = f"{path} is cut off or holds no array"
    with (
        explained(
            lambda error: f"{broken} ({error}): fetch it anew", ValueError, KeyError, OSError
        ),
        path.open("rb") as stream,
    ):
        stream.seek(offset)
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = header(stream)
        order = "F" if fortran else "C"
        return np.memmap(stream, dtype, "r", offset=stream.tell(), shape=shape, order=order)


def _open_folders(path: Path, dataset: Dataset, labels: Int[Tensor, " N"]) -> OfficialCorruptions:
    found = [folder.name for folder in path.iterdir() if folder.is_dir()]
    names = _names_of(path, found, dataset)
    missing = [
        f"{name}/{severity}"
        for name in names
        for severity in SEVERITIES
        if not (path / name / str(severity)).is_dir()
    ]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}{_where(dataset)}")

    @cache
    def list_cell(name: str, severity: int) -> list[Path]:
        folder = path / name / str(severity)
        files = [file.name for file in find_files(folder)]
        classes = sorted({file.partition("/")[0] for file in files})
        place = {name: number for number, name in enumerate(classes)}
        if [place[file.partition("/")[0]] for file in files] != labels.tolist():
            raise DataError(
                f"{folder} has {len(files)} images of {len(classes)} classes, other than the "
                f"{len(labels)} of {dataset.num_classes} of the test split, class by class"
                f"{_where(dataset)}"
            )
        return [folder / file for file in files]

    list_cell(names[0], SEVERITIES[0])
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def decode(file: Path) -> np.ndarray:
        broken = f"{file} cannot be read"
        with explained(lambda error: f"{broken} ({error}): fetch it anew", OSError, ValueError):
            return to_rgb(open_image(file), dataset.image_size)

    def read(name: str, severity: int, start: int, stop: int) -> np.ndarray:
        return np.stack(list(pool.map(decode, list_cell(name, severity)[start:stop])))

    return OfficialCorruptions(path=path, names=names, labels=labels, read=read)
