import hashlib
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from smallvit.core.errors import DataError
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.files.official import CINIC_CLASSES, LAYOUTS, open_named
from smallvit.data.files.own import open_path
from smallvit.data.files.registry import DATASETS, get_dataset_spec
from smallvit.data.files.sources import Listing, Source, SourceSplit

RNG = np.random.default_rng(0)
TRAIN_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
CIFAR_PIXELS = RNG.integers(0, 256, (6, 20, 3, 32, 32), dtype=np.uint8)
SVHN_PIXELS = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
FASHION_PIXELS = RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8)
SMALL = {  # what the fixtures hold
    "cifar10": {"num_train": 100, "num_test": 20},
    "cifar100": {"num_train": 20, "num_test": 20},
    "svhn": {"num_train": 12, "num_test": 12},
    "fashion-mnist": {"num_train": 10, "num_test": 10},
    "tiny-imagenet": {"num_classes": 3, "num_train": 6, "num_test": 6},
    "cinic10": {"num_train": 11, "num_val": 10, "num_test": 10},
    "aircraft": {"num_classes": 3, "num_train": 3, "num_val": 3, "num_test": 3},
    "cars": {"num_classes": 3, "num_train": 3, "num_test": 1},
}


def open_in(data_dir: Path, name: str, **counts: int) -> Source:
    spec = replace(get_dataset_spec(name), **SMALL.get(name, {}) | counts)
    return open_named(spec, data_dir=data_dir)


def list_in(data_dir: Path, name: str, **counts: int) -> Listing:
    return open_in(data_dir, name, **counts).list_images()


def pixels(split: SourceSplit, i: int) -> np.ndarray:
    return np.asarray(split.read(i))


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 20, 30)).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def pickle_as_python_2(content: dict[str, object]) -> bytes:
    """Pickle with ints where NumPy wants booleans, of which it warns.

    The official batches have 0 and 1, of which only NumPy 2.4.0 to 2.4.4 warn; of 0 and 0, later
    ones do too.
    """
    return pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x00\x87")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_absent_data_is_refused_with_what_to_run_and_where_it_is_to_be_had(tmp_path, name):
    spec = get_dataset_spec(name)
    with pytest.raises(
        DataError, match=rf"^{name} is not in .*`smallvit data get {name}`"
    ) as caught:
        open_in(tmp_path, name)
    message = str(caught.value)
    assert (spec.files[0].urls[0] if spec.files else spec.page) in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert not any(tmp_path.iterdir())


def test_digits_are_the_images_of_scikit_learn(tmp_path):
    source = open_in(tmp_path, "digits")
    listing = source.list_images()
    (split,) = listing.splits.values()
    assert len(split.names) == len(split.labels) == get_dataset_spec("digits").num_train
    assert listing.class_names == tuple("0123456789")
    assert pixels(split, 0)[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert split.labels[:4].tolist() == [0, 1, 2, 3]
    assert (source.hflip, source.image_size) == (False, 8)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives in the official layout, 20 images a file, whose checksums torchvision accepts."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    sums = {}

    def put(name: str, content: dict[str, object]) -> None:
        packed = pickle_as_python_2(content)
        (folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()

    for name, images in zip([*TRAIN_BATCHES, "test_batch"], CIFAR_PIXELS, strict=True):
        put(name, {"data": images.reshape(20, -1), "labels": [i % 10 for i in range(20)]})
    put("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_BATCHES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return tmp_path


def test_cifar10_batches_are_read_in_order_with_labels_and_names(cifar10):
    listing = list_in(cifar10, "cifar10")
    assert listing.class_names == tuple(f"class {i}" for i in range(10))
    assert {name: len(split.names) for name, split in listing.splits.items()} == {
        "train": 100,
        "test": 20,
    }
    train = listing.splits["train"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [i % 10 for i in range(20)] * 5
    assert train.names[25] == "train/00025"
    assert np.array_equal(pixels(train, 25).transpose(2, 0, 1), CIFAR_PIXELS[1, 5])
    assert np.array_equal(pixels(listing.splits["test"], 3).transpose(2, 0, 1), CIFAR_PIXELS[5, 3])


def test_a_batch_with_another_checksum_is_refused_with_the_remedy(cifar10):
    path = cifar10 / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"x")
    source = open_in(cifar10, "cifar10")
    match = (
        r"^cifar10: .*cifar-10-batches-py cannot be read \(.*corrupted.*\): mend it, or remove "
        r".*cifar-10-batches-py and run `smallvit data get cifar10`$"
    )
    with pytest.raises(DataError, match=match):
        source.list_images()


def test_a_missing_batch_is_named(cifar10):
    (cifar10 / CIFAR10.base_folder / "test_batch").unlink()
    with pytest.raises(DataError, match=r"cifar10: .*test_batch is missing: mend it, or remove"):
        open_in(cifar10, "cifar10")


def test_the_key_of_cifar10_changes_with_a_batch_and_not_without(cifar10):
    before = open_in(cifar10, "cifar10").key
    assert open_in(cifar10, "cifar10").key == before
    path = cifar10 / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"x")
    assert open_in(cifar10, "cifar10").key != before


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    contents = {
        name: {
            "data": images.reshape(20, -1),
            "fine_labels": list(range(80, 100)),
            "coarse_labels": [0] * 20,
        }
        for name, images in zip(("train", "test"), CIFAR_PIXELS, strict=False)
    }
    contents["meta"] = {
        "fine_label_names": [f"fine {i}" for i in range(100)],
        "coarse_label_names": ["coarse"],
    }
    packed = {name: pickle_as_python_2(content) for name, content in contents.items()}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})

    listing = list_in(tmp_path, "cifar100")
    assert listing.class_names[99] == "fine 99"
    assert listing.splits["test"].labels.tolist() == list(range(80, 100))
    image = pixels(listing.splits["test"], 7).transpose(2, 0, 1)
    assert np.array_equal(image, CIFAR_PIXELS[1, 7])


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both files with 12 images of the digits 1 to 9, 0 (stored as 10), 1, 2."""
    labels = np.array([*range(1, 11), 1, 2], dtype=np.uint8)[:, None]
    sums = {}
    for split, images in (("train", SVHN_PIXELS), ("test", SVHN_PIXELS[::-1])):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels})
        sums[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", sums)
    return tmp_path


def test_svhn_is_read_with_the_digit_0_as_class_0(svhn):
    listing = list_in(svhn, "svhn")
    assert listing.class_names == tuple("0123456789")
    assert list(listing.splits) == ["train", "test"]
    train = listing.splits["train"]
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert np.array_equal(pixels(train, 5), SVHN_PIXELS[5])
    assert np.array_equal(pixels(listing.splits["test"], 0), SVHN_PIXELS[11])


def test_house_numbers_are_not_mirrored(svhn):
    assert open_in(svhn, "svhn").hflip is False


def test_a_cut_file_of_svhn_is_named(svhn):
    path = svhn / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    source = open_in(svhn, "svhn")
    match = (
        r"test_32x32\.mat cannot be read .*mend it, or remove it and run `smallvit data get svhn`"
    )
    with pytest.raises(DataError, match=match):
        source.list_images()


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])  # 8 stands for unsigned bytes
    return header + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)

    labels = np.arange(10, dtype=np.uint8)
    for split, images in (("train", FASHION_PIXELS), ("t10k", FASHION_PIXELS[::-1])):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_fashion_mnist_is_read_as_grey_images(fashion):
    listing = list_in(fashion, "fashion-mnist")
    assert listing.class_names[:2] == ("T-shirt/top", "Trouser")
    test = listing.splits["test"]
    assert test.labels.tolist() == list(range(10))
    assert test.read(0).mode == "L"
    assert np.array_equal(pixels(test, 0), FASHION_PIXELS[9])
    assert np.array_equal(pixels(listing.splits["train"], 4), FASHION_PIXELS[4])


def test_images_of_fashion_mnist_without_labels_are_refused(fashion):
    raw = fashion / "FashionMNIST" / "raw"
    labels = idx(np.arange(9, dtype=np.uint8))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)
    source = open_in(fashion, "fashion-mnist")
    with pytest.raises(DataError, match=r"10 images and 9 labels in test: mend it"):
        source.list_images()


@pytest.mark.parametrize("size", [0, 500])
def test_a_cut_file_of_fashion_mnist_is_refused(fashion, size):
    path = fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:size])
    source = open_in(fashion, "fashion-mnist")
    with pytest.raises(DataError, match=r"FashionMNIST/raw cannot be read \(.+\): mend it"):
        source.list_images()


WNIDS = ("n02", "n01", "n03")  # as in the official file, in no order


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes, two of them called crane; two training and two validation images each."""
    root = tmp_path / "tiny-imagenet-200"
    write(root / "wnids.txt", *WNIDS)
    write(root / "words.txt", "n00\tentity", "n01\tcrane, bird", "n02\tgoldfish", "n03\tcrane")
    lines = []
    for i, wnid in enumerate(WNIDS):
        write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t3\t3")
        for j in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{j}.JPEG", 40 * i)
            save(root / "val" / "images" / f"val_{2 * i + j}.JPEG", 40 * i)
            lines.append(f"val_{2 * i + j}.JPEG\t{wnid}\t0\t0\t3\t3")
    write(root / "val" / "val_annotations.txt", *reversed(lines))
    save(root / "test" / "images" / "test_0.JPEG")
    return tmp_path


def arrange_val(data_dir: Path, folder: str) -> None:
    """Sort the validation images into class folders, as many users do."""
    val = data_dir / "tiny-imagenet-200" / "val"
    for line in (val / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        target = val / wnid / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (val / "images" / name).rename(target)
    (val / "images").rmdir()
    (val / "val_annotations.txt").unlink()


def test_a_dataset_copied_in_part_is_refused_with_both_numbers(tiny):
    source = open_named(get_dataset_spec("tiny-imagenet"), data_dir=tiny)
    match = (
        "^tiny-imagenet: 3 classes here, 200 officially; 6 train images here, 100,000 officially; "
        "6 test images here, 10,000 officially: mend it, or remove .*tiny-imagenet-200 and run "
        "`smallvit data get tiny-imagenet`$"
    )
    with pytest.raises(DataError, match=match):
        source.list_images()


@pytest.mark.parametrize("folder", ["n02", "n01"])
def test_a_training_image_that_is_missing_is_noticed(tiny, folder):
    (tiny / "tiny-imagenet-200" / "train" / folder / "images" / f"{folder}_1.JPEG").unlink()
    source = open_in(tiny, "tiny-imagenet")
    with pytest.raises(DataError, match=r"imagenet: 5 train images here, 6 officially: mend it"):
        source.list_images()


def test_images_of_a_split_that_is_not_official_are_refused(cinic):
    source = open_in(cinic, "cinic10", num_val=0)
    with pytest.raises(DataError, match="cinic10: 10 val images here, 0 officially"):
        source.list_images()


def test_tiny_imagenet_is_labelled_by_sorted_ids_and_named_by_words(tiny):
    listing = list_in(tiny, "tiny-imagenet")
    assert listing.class_names == ("crane (n01)", "goldfish", "crane (n03)")
    train = listing.splits["train"]
    assert train.names[:3] == [
        "train/n01/images/n01_0.JPEG",
        "train/n01/images/n01_1.JPEG",
        "train/n02/images/n02_0.JPEG",
    ]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(tiny / "tiny-imagenet-200" / train.names[4]) as image:
        assert np.array_equal(pixels(train, 4), np.asarray(image))


def test_the_validation_split_of_tiny_imagenet_is_its_test_split(tiny):
    listing = list_in(tiny, "tiny-imagenet")
    assert list(listing.splits) == ["train", "test"]
    test = listing.splits["test"]
    assert test.names == [f"val/images/val_{i}.JPEG" for i in (2, 3, 0, 1, 4, 5)]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    reds = [pixels(test, i)[0, 0, 0] for i in (0, 2, 4)]
    assert np.allclose(reds, [40, 0, 80], atol=4)  # JPEG


@pytest.mark.parametrize("folder", ["", "images"])
def test_validation_images_in_class_folders_are_read_in_the_same_order(tiny, folder):
    before = list_in(tiny, "tiny-imagenet").splits["test"]
    last = pixels(before, 5).tolist()
    arrange_val(tiny, folder)
    after = list_in(tiny, "tiny-imagenet").splits["test"]
    assert [Path(name).name for name in after.names] == [Path(name).name for name in before.names]
    assert after.labels.tolist() == before.labels.tolist()
    assert pixels(after, 5).tolist() == last


def test_an_annotated_image_that_is_missing_is_named(tiny):
    (tiny / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG").unlink()
    source = open_in(tiny, "tiny-imagenet")
    with pytest.raises(DataError, match=r"val_3\.JPEG is missing: mend it, or remove .*-200 and"):
        source.list_images()


def test_an_image_without_annotation_is_named(tiny):
    save(tiny / "tiny-imagenet-200" / "val" / "images" / "val_9.JPEG")
    source = open_in(tiny, "tiny-imagenet")
    with pytest.raises(DataError, match=r"val_9\.JPEG is not in val_annotations\.txt"):
        source.list_images()


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("val_0.JPEG\tn99\t0\t0\t3\t3", r"has the class n99, which is not in wnids\.txt"),
        ("val_0.JPEG", r"val_annotations\.txt cannot be read"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(tiny, line, match):
    path = tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    source = open_in(tiny, "tiny-imagenet")
    with pytest.raises(DataError, match=match):
        source.list_images()


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_a_missing_list_of_tiny_imagenet_is_named(tiny, name):
    (tiny / "tiny-imagenet-200" / name).unlink()
    with pytest.raises(DataError, match=rf"tiny-imagenet: .*{name} is missing"):
        open_in(tiny, "tiny-imagenet")


@pytest.mark.parametrize("folder", ["train/n02/images", "val/images"])
def test_the_key_of_tiny_imagenet_changes_when_an_image_goes(tiny, folder):
    images = tiny / "tiny-imagenet-200" / folder
    os.utime(images, ns=(0, 0))  # clocks of file systems are too coarse for a folder just made
    before = open_in(tiny, "tiny-imagenet").key
    assert open_in(tiny, "tiny-imagenet").key == before
    next(images.iterdir()).unlink()
    assert open_in(tiny, "tiny-imagenet").key != before


@pytest.fixture
def cinic(tmp_path: Path) -> Path:
    for i, split in enumerate(("train", "valid", "test")):
        for j, name in enumerate(CINIC_CLASSES):
            save(tmp_path / "cinic-10" / split / name / "n02_1.png", 100 * i + j)
    save(tmp_path / "cinic-10" / "train" / "bird" / "cifar-10-train-7.png", 99)
    return tmp_path


def test_cinic10_is_read_with_its_validation_split(cinic):
    listing = list_in(cinic, "cinic10")
    assert listing.class_names == CINIC_CLASSES
    assert {name: len(split.names) for name, split in listing.splits.items()} == {
        "train": 11,
        "val": 10,
        "test": 10,
    }
    train, val = listing.splits["train"], listing.splits["val"]
    assert train.names[2:4] == ["train/bird/cifar-10-train-7.png", "train/bird/n02_1.png"]
    assert train.labels.tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]
    assert pixels(train, 2)[0, 0].tolist() == [99, 20, 30]
    assert val.names[9] == "valid/truck/n02_1.png"
    assert pixels(val, 9)[0, 0].tolist() == [109, 20, 30]


def test_the_key_of_cinic10_changes_when_an_image_comes(cinic):
    folder = cinic / "cinic-10" / "test" / "ship"
    os.utime(folder, ns=(0, 0))
    before = open_in(cinic, "cinic10").key
    save(folder / "n02_2.png")
    assert open_in(cinic, "cinic10").key != before


def test_a_missing_class_folder_of_cinic10_is_named(cinic):
    folder = cinic / "cinic-10" / "valid" / "frog"
    (folder / "n02_1.png").unlink()
    folder.rmdir()
    with pytest.raises(DataError, match=r"cinic10: .*valid/frog is missing: mend it"):
        open_in(cinic, "cinic10")


@pytest.fixture
def aircraft(tmp_path: Path) -> Path:
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "707-320", "F/A-18", "Cessna 172")
    for i, split in enumerate(("train", "val", "test")):
        numbers = [f"{i}00000{j}" for j in range(3)]
        variants = ("Cessna 172", "707-320", "F/A-18")
        write(
            data / f"images_variant_{split}.txt",
            *(f"{number} {name}" for number, name in zip(numbers, variants, strict=True)),
        )
        for number in numbers:
            image = Image.new("RGB", (40, 60), "black")
            image.paste((200, 0, 0), (0, 0, 40, 40))  # the banner is black
            (data / "images").mkdir(exist_ok=True)
            image.save(data / "images" / f"{number}.jpg", quality=95)
    return tmp_path


def test_aircraft_variants_are_read_in_the_order_of_the_annotations(aircraft):
    listing = list_in(aircraft, "aircraft")
    assert listing.class_names == ("707-320", "F/A-18", "Cessna 172")
    assert list(listing.splits) == ["train", "val", "test"]
    assert listing.splits["val"].labels.tolist() == [2, 0, 1]
    assert listing.splits["val"].names == [f"images/100000{j}.jpg" for j in range(3)]


def test_the_banner_of_aircraft_photographs_is_cut_off(aircraft):
    image = pixels(list_in(aircraft, "aircraft").splits["train"], 0)
    assert image.shape == (40, 40, 3)
    assert image[:32, :, 0].min() > 150  # the rows below are blurred by JPEG


def test_a_photograph_of_aircraft_that_is_missing_is_named(aircraft):
    (aircraft / "fgvc-aircraft-2013b" / "data" / "images" / "2000001.jpg").unlink()
    source = open_in(aircraft, "aircraft")
    match = r"images/2000001\.jpg is missing: mend it, or remove .*fgvc-aircraft-2013b and run"
    with pytest.raises(DataError, match=match):
        source.list_images()


def test_an_unknown_variant_is_refused(aircraft):
    path = aircraft / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt"
    path.write_text("2000000 Concorde\n")
    source = open_in(aircraft, "aircraft")
    with pytest.raises(DataError, match=r"images_variant_test\.txt cannot be read .*Concorde"):
        source.list_images()


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Audi R8 2012", "Ram C/V 2012"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    for path, folder, classes in (
        (root / "devkit" / "cars_train_annos.mat", "cars_train", (3, 1, 2)),
        (root / "cars_test_annos_withlabels.mat", "cars_test", (2,)),
    ):
        records = np.zeros((1, len(classes)), dtype=kinds)
        for i, label in enumerate(classes):
            records[0, i] = (np.uint16(5), np.uint8(label), f"{i + 1:05d}.jpg")
            save(root / folder / f"{i + 1:05d}.jpg", 60 * label)
        savemat(path, {"annotations": records})
    return tmp_path


def test_cars_are_read_from_the_devkit(cars):
    listing = list_in(cars, "cars")
    assert listing.class_names == ("AM General Hummer SUV 2000", "Audi R8 2012", "Ram C/V 2012")
    train, test = listing.splits["train"], listing.splits["test"]
    assert train.names == [f"cars_train/0000{i}.jpg" for i in (1, 2, 3)]
    assert train.labels.tolist() == [2, 0, 1]
    assert test.labels.tolist() == [1]
    with Image.open(cars / "stanford_cars" / "cars_train" / "00001.jpg") as image:
        assert np.array_equal(pixels(train, 0), np.asarray(image))


def test_test_annotations_of_cars_that_are_missing_are_named(cars):
    (cars / "stanford_cars" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match=r"cars: .*_withlabels\.mat is missing: mend it, or remove"):
        open_in(cars, "cars")


def test_a_photograph_of_cars_that_is_missing_is_named(cars):
    (cars / "stanford_cars" / "cars_train" / "00002.jpg").unlink()
    source = open_in(cars, "cars")
    with pytest.raises(DataError, match=r"cars: .*cars_train/00002\.jpg is missing: mend it"):
        source.list_images()


def test_a_broken_file_of_annotations_is_named(cars):
    (cars / "stanford_cars" / "devkit" / "cars_train_annos.mat").write_bytes(b"not MATLAB")
    source = open_in(cars, "cars")
    with pytest.raises(DataError, match=r"cars_train_annos\.mat cannot be read \(.+\): mend it"):
        source.list_images()


def save_parquet(path: Path, values: list[int]) -> None:
    pa = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, value in enumerate(values):
        save(path.with_suffix(".png"), value)
        rows.append(
            {
                "image": {"bytes": path.with_suffix(".png").read_bytes(), "path": f"{i}.png"},
                "label": value % 2,
            }
        )
    path.with_suffix(".png").unlink()
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("train", "test", "other"),
    [
        ("data/train-00000-of-00001", "data/test-00000-of-00001", "data/contrast-00000-of-00001"),
        ("default/train/0000", "default/test/0000", "default/contrast/0000"),
    ],
)
def test_cars_are_read_from_a_parquet_copy_without_its_other_splits(tmp_path, train, test, other):
    root = tmp_path / "stanford_cars"
    save_parquet(root / f"{train}.parquet", [10, 11, 12])
    save_parquet(root / f"{test}.parquet", [21, 20])
    save_parquet(root / f"{other}.parquet", [31])
    splits = list_in(tmp_path, "cars", num_classes=2, num_train=3, num_test=2).splits
    assert {name: split.labels.tolist() for name, split in splits.items()} == {
        "train": [0, 1, 0],
        "test": [1, 0],
    }
    assert pixels(splits["test"], 0)[0, 0].tolist() == [21, 20, 30]


def test_a_parquet_copy_without_test_files_is_refused(tmp_path):
    save_parquet(tmp_path / "stanford_cars" / "data" / "train-00000-of-00001.parquet", [1, 2])
    source = open_in(tmp_path, "cars")
    with pytest.raises(DataError, match=r"stanford_cars has no parquet file of the split test"):
        source.list_images()


def test_an_empty_folder_of_cars_is_no_dataset(tmp_path):
    (tmp_path / "stanford_cars").mkdir()
    with pytest.raises(DataError, match=r"cars is not in .* fetches it; by hand: put the parquet"):
        open_in(tmp_path, "cars")


def test_a_folder_of_cars_without_annotations_names_the_first_file_that_is_missing(tmp_path):
    (tmp_path / "stanford_cars" / "cars_train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"devkit/cars_meta\.mat is missing: mend it, or remove"):
        open_in(tmp_path, "cars")


real = pytest.mark.skipif(
    "SMALLVIT_TEST_DATA" not in os.environ, reason="SMALLVIT_TEST_DATA is not set"
)


@real
def test_the_real_tiny_imagenet_has_its_official_counts_and_opens_fast():
    spec = get_dataset_spec("tiny-imagenet")
    start = time.perf_counter()
    source = open_named(spec, data_dir=Path(os.environ["SMALLVIT_TEST_DATA"]))
    assert time.perf_counter() - start < 0.2
    listing = source.list_images()
    assert len(set(listing.class_names)) == spec.num_classes
    assert listing.class_names[0] == "goldfish"
    train, test = listing.splits["train"], listing.splits["test"]
    assert np.bincount(train.labels).tolist() == [500] * 200
    assert np.bincount(test.labels).tolist() == [50] * 200
    assert train.read(99_999).size == test.read(9_999).size == (64, 64)


@real
def test_cifar10_as_jpeg_folders_has_the_official_counts():
    spec = get_dataset_spec("cifar10")
    listing = open_path(Path(os.environ["SMALLVIT_TEST_DATA"]) / "cifar10-jpeg").list_images()
    assert len(listing.class_names) == spec.num_classes
    assert len(listing.splits["train"].names) == spec.num_train
    assert len(listing.splits["test"].names) == spec.num_test


def test_the_worked_example_of_the_documentation_is_read(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/adding.md").read_text()
    for known in (DATASETS, LAYOUTS):
        monkeypatch.setitem(known, "shapes", None)  # so that it is taken out again
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    for i in range(46):
        split, number = ("train", i) if i < 40 else ("test", i - 40)
        save(tmp_path / "shapes" / split / ("circle", "square")[i % 2] / f"{number}.png", value=i)
    config = DataConfig(dataset="shapes")
    dataset = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
    assert dataset.class_names == ("circle", "square")
    assert dataset.image_size == 8
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 40
    assert len(dataset.splits["test"]) == 6
    (tmp_path / "shapes/test/circle/0.png").unlink()
    with pytest.raises(DataError, match=r"shapes: 5 test images here, 6 officially: mend it, or"):
        load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
