from pathlib import Path

import numpy as np
import pytest

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.own import open_path

SIZES = {"train": 6, "val": 4, "test": 5}


def medmnist(path: Path, shape: tuple[int, ...] = (28, 28), dtype: type = np.uint8) -> Path:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in SIZES.items():
        arrays[f"{split}_images"] = generator.integers(0, 255, (count, *shape)).astype(dtype)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 3
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (3, 28, 28), (28, 28, 1), (28, 28, 4)])
def test_medmnist_is_read_grey_or_in_color(tmp_path, shape):
    source = open_path(medmnist(tmp_path / "pathmnist.npz", shape))
    listing = source.list_images()
    assert (source.name, source.kind, listing.class_names) == (
        "pathmnist",
        "arrays",
        ("0", "1", "2"),
    )
    assert {split: len(found.names) for split, found in listing.splits.items()} == SIZES
    assert listing.splits["train"].labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert listing.splits["test"].read(4).size == (28, 28)
    assert listing.splits["val"].names[1] == "val_images[1]"


def test_pixels_are_those_of_the_array(tmp_path):
    path = medmnist(tmp_path / "a.npz", (3, 9, 8))
    pixels = np.asarray(open_path(path).list_images().splits["train"].read(2))
    np.testing.assert_array_equal(pixels, np.load(path)["train_images"][2].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("dtype", "mode"), [(np.uint16, "I;16"), (np.float64, "F"), (np.int64, "I")]
)
def test_grey_of_more_than_8_bits_keeps_its_values(tmp_path, dtype, mode):
    path = medmnist(tmp_path / "a.npz", dtype=dtype)
    image = open_path(path).list_images().splits["train"].read(0)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), np.load(path)["train_images"][0])


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "y_train", "X_test", "y_test"),
        ("train_data", "train_targets", "test_data", "test_targets"),
    ],
)
def test_the_names_of_other_tools_are_known(tmp_path, names):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array(["b", "a", "b", "a"])
    np.savez(tmp_path / "a.npz", **dict(zip(names, (images, labels) * 2, strict=True)))
    listing = open_path(tmp_path / "a.npz").list_images()
    assert (listing.class_names, list(listing.splits)) == (("a", "b"), ["train", "test"])


def test_images_and_labels_alone_are_one_training_split(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((12, 8, 8), np.uint8), labels=np.arange(12.0))
    listing = open_path(tmp_path / "a.npz").list_images()
    assert list(listing.splits) == ["train"]
    assert listing.class_names == tuple(map(str, range(12)))


def test_without_labels_the_images_are_unlabelled(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((4, 8, 8), np.uint8))
    listing = open_path(tmp_path / "a.npz").list_images()
    assert (listing.class_names, listing.splits["train"].labels.tolist()) == ((), [-1] * 4)


def test_a_layout_names_the_splits(tmp_path):
    arrays = {f"{name}_images": np.zeros((4, 8, 8), np.uint8) for name in ("one", "two")}
    arrays |= {f"{name}_labels": np.arange(4) % 2 for name in ("one", "two")}
    np.savez(tmp_path / "a.npz", **arrays)
    listing = open_path(tmp_path / "a.npz", layout="train=one,test=two").list_images()
    assert list(listing.splits) == ["train", "test"]
    assert list(
        open_path(medmnist(tmp_path / "b.npz"), layout="train=train").list_images().splits
    ) == ["train"]
    with pytest.raises(ConfigError, match="classes is for folders"):
        open_path(tmp_path / "a.npz", layout="classes")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"foo": np.zeros(3)}, "has the arrays foo: images are read from train_images and labels"),
        (
            {"train_images": np.zeros((4, 8, 8), np.uint8), "train_labels": np.eye(4, 3)},
            r"shape \(4, 3\), several labels an image.*train_labels\.argmax\(axis=1\)",
        ),
        (
            {"train_images": np.zeros((4, 8, 8, 8), np.uint8), "train_labels": np.arange(4)},
            r"shape \(4, 8, 8, 8\), and images are \(N, H, W\), .*: save slices",
        ),
        (
            {"train_images": np.zeros((4, 8, 8, 3)), "train_labels": np.arange(4)},
            r"float64 with colors, .*\(train_images \* 255\)\.astype\('uint8'\)",
        ),
        (
            {"train_images": np.zeros((4, 8, 8), np.uint8), "train_labels": np.arange(3)},
            "train_images has 4 images and train_labels 3 labels",
        ),
        (
            {"train_images": np.zeros((4, 8, 8), np.uint8), "train_labels": np.zeros(4, np.int64)},
            "all images are of one class",
        ),
        (
            {"train_images": np.zeros((4, 8, 8), np.uint8), "train_labels": np.arange(4) / 3},
            "train_labels is float64: save the classes as integers or text",
        ),
    ],
)
def test_arrays_that_are_not_images_with_labels_are_refused_with_a_remedy(
    tmp_path, arrays, message
):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_path(tmp_path / "a.npz").list_images()


def test_python_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=[{}, {}])
    with pytest.raises(DataError, match="holds Python objects, which could run code: save plain"):
        open_path(tmp_path / "a.npz").list_images()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_broken_file_is_refused(tmp_path, keep):
    path = medmnist(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.npz is not a whole \.npz file"):
        open_path(path).list_images()


def test_columns_are_not_for_arrays(tmp_path):
    with pytest.raises(ConfigError, match=r"holds arrays, and --data\.image-column"):
        open_path(medmnist(tmp_path / "a.npz"), image_column="x")
