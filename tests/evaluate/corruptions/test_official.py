import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.core.errors import ConfigError, DataError, UnknownNameError
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.evaluate.corruptions import CORRUPTIONS, open_official

NUM, SIDE = 6, 8
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Three classes, two test images each, under the name of the official data set."""
    generator = np.random.default_rng(0)
    for split, num in (("train", 12), ("test", 2)):
        for name in ("n01", "n02", "n03"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    # In the order of the files, as official data sets are.
    config = DataConfig(path=tmp_path / "data", image_size=SIDE, split_version=1)
    loaded = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    return replace(loaded, name="cifar10")


@pytest.fixture
def arrays(tmp_path):
    """CIFAR-10-C in small: pixels say corruption, severity and image."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, name in enumerate(CORRUPTIONS):
        pixels = np.full((5 * NUM, SIDE, SIDE, 3), number, dtype=np.uint8)
        pixels[..., 1] = np.repeat(np.arange(1, 6), NUM)[:, None, None]
        pixels[..., 2] = np.tile(np.arange(NUM), 5)[:, None, None]
        np.save(folder / f"{name}.npy", pixels)
    np.save(folder / "labels.npy", np.tile([0, 0, 1, 1, 2, 2], 5).astype(np.uint8))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Tiny-ImageNet-C in small."""
    root = tmp_path / "Tiny-ImageNet-C"
    for number, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            for label, wnid in enumerate(("n01", "n02", "n03")):
                folder = root / name / str(severity) / wnid
                folder.mkdir(parents=True)
                for i in range(2):
                    pixels = np.full((SIDE, SIDE, 3), 10 * number + severity, dtype=np.uint8)
                    pixels[..., 2] = 20 * (2 * label + i)
                    Image.fromarray(pixels).save(folder / f"test_{i}.JPEG", quality=95)
    return root


def tar(folder):
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=folder.name)
    return path


@pytest.mark.parametrize("pack", [lambda folder: folder, tar], ids=["folder", "tar"])
def test_reads_the_block_of_a_severity_in_order(arrays, dataset, pack):
    official = open_official(pack(arrays), dataset)
    assert official.names == CORRUPTIONS
    batches = list(official.batches("fog", 4, batch_size=4, device=CPU))
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert [len(part) for part, _ in batches] == [4, 2]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.shape == (NUM, 3, SIDE, SIDE)
    assert images[:, 0].unique().tolist() == [CORRUPTIONS.index("fog")]
    assert images[:, 1].unique().tolist() == [4]
    assert images[:, 2, 0, 0].tolist() == list(range(NUM))


def test_reads_class_folders_by_class_and_name(folders, dataset):
    official = open_official(folders, replace(dataset, name="tiny-imagenet"))
    ((images, labels),) = official.batches("snow", 2, batch_size=10, device=CPU)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    wanted = 10 * CORRUPTIONS.index("snow") + 2
    assert (images[:, :2].float().mean() - wanted).abs() < 3
    means = images[:, 2].float().mean(dim=(1, 2)).tolist()
    assert means == pytest.approx([0, 20, 40, 60, 80, 100], abs=4)


def test_names_the_corruptions_that_are_missing(arrays, dataset):
    (arrays / "fog.npy").unlink()
    (arrays / "snow.npy").unlink()
    with pytest.raises(DataError, match=r"lacks snow, fog of the 15 .* DOI 10.5281/zenodo.2535967"):
        open_official(arrays, dataset)


def test_names_the_severity_that_is_missing(folders, dataset):
    (folders / "frost" / "3").rename(folders / "frost" / "three")
    with pytest.raises(DataError, match="lacks frost/3"):
        open_official(folders, dataset)


def test_says_where_an_absent_archive_is_to_be_had(tmp_path, dataset):
    with pytest.raises(DataError, match="not there: the archive of cifar10 is DOI"):
        open_official(tmp_path / "none", dataset)
    with pytest.raises(DataError, match=r"official archives are of cifar10, .* not of digits"):
        open_official(tmp_path / "none", replace(dataset, name="digits"))


def test_refuses_labels_in_another_order(arrays, dataset):
    np.save(arrays / "labels.npy", np.tile([0, 1, 0, 1, 2, 2], 5))
    with pytest.raises(DataError, match="not 5 times the labels of the test split of cifar10"):
        open_official(arrays, dataset)


def test_refuses_arrays_of_another_size(arrays, dataset):
    np.save(arrays / "contrast.npy", np.zeros((5 * NUM, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"contrast.npy has shape \(30, 4, 4, 3\)"):
        open_official(arrays, dataset)


def test_refuses_a_file_that_is_cut_off(arrays, dataset):
    content = (arrays / "fog.npy").read_bytes()
    (arrays / "fog.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"fog.npy is cut off or holds no array"):
        open_official(arrays, dataset)


def test_refuses_a_compressed_tar(arrays, dataset):
    path = arrays.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(arrays, arcname="CIFAR-10-C")
    with pytest.raises(DataError, match="no uncompressed tar file"):
        open_official(path, dataset)


def test_refuses_class_folders_with_other_numbers_of_images(folders, dataset):
    (folders / CORRUPTIONS[0] / "1" / "n02" / "test_0.JPEG").unlink()
    with pytest.raises(DataError, match="5 images of 3 classes, other than the 6 of 3"):
        open_official(folders, dataset)


def test_names_an_image_that_cannot_be_read(folders, dataset):
    path = folders / "fog" / "1" / "n02" / "test_0.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    official = open_official(folders, dataset)
    with pytest.raises(DataError, match=r"test_0.JPEG cannot be read"):
        list(official.batches("fog", 1, batch_size=6, device=CPU))


def test_refuses_a_cell_that_is_not_there(arrays, dataset):
    official = open_official(arrays, dataset)
    with pytest.raises(UnknownNameError, match=r"unknown corruption of .*'spatter'"):
        next(official.batches("spatter", 1, batch_size=2, device=CPU))
    with pytest.raises(ConfigError, match="severity must be 1 to 5, got 0"):
        next(official.batches("fog", 0, batch_size=2, device=CPU))
