import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from smallvit.core.errors import DataError
from smallvit.data.loader import DataConfig, load_dataset
from smallvit.data.registry import get_dataset_spec
from smallvit.data.sources import open_named

NAMES = [f"class {i}" for i in range(10)]
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 20, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives in the official layout, 20 images a file, whose checksums torchvision accepts."""
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sums = {}

    def write(name: str, content: dict) -> None:
        packed = pickle.dumps(content)
        (folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()

    for name, pixels in zip([*TRAIN, "test_batch"], PIXELS, strict=True):
        labels = [i % 10 for i in range(20)]
        write(name, {"data": pixels.reshape(20, -1), "labels": labels})
    write("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return folder.parent


def test_official_archives_are_read_with_their_labels_and_names(data_dir):
    source = open_named(get_dataset_spec("cifar10"), data_dir=data_dir, offline=True)
    assert source.class_names == tuple(NAMES)
    assert {name: len(split.names) for name, split in source.splits.items()} == {
        "train": 100,
        "test": 20,
    }
    assert source.splits["test"].labels.tolist() == [i % 10 for i in range(20)]
    image = np.asarray(source.splits["train"].read(25)).transpose(2, 0, 1)
    assert np.array_equal(image, PIXELS[1, 5])


def test_the_official_test_split_is_kept_and_validation_cut_from_train(data_dir, tmp_path):
    config = DataConfig(dataset="cifar10", image_size=32)
    dataset = load_dataset(config, data_dir=data_dir, cache_dir=tmp_path, offline=True)
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [90, 10, 20]
    assert np.array_equal(dataset.splits["test"].images.numpy(), PIXELS[5])
    assert dataset.hflip is True


def test_a_file_with_another_checksum_is_refused(data_dir):
    path = data_dir / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="cifar10 is not in"):
        open_named(get_dataset_spec("cifar10"), data_dir=data_dir, offline=True)


@pytest.mark.parametrize(
    ("name", "file", "md5"),
    [
        ("cifar10", r"cifar-10-python\.tar\.gz", "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", r"cifar-100-python\.tar\.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    ],
)
def test_absent_data_offline_names_file_checksum_and_address(tmp_path, name, file, md5):
    match = (
        rf"{name} is not in .*\(offline\): put {file} \(md5 {md5}\) from https://www\.cs\.toronto"
    )
    with pytest.raises(DataError, match=match) as caught:
        open_named(get_dataset_spec(name), data_dir=tmp_path, offline=True)
    assert caught.value.exit_code == 3
    assert not any(tmp_path.iterdir())
