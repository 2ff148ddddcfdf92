import re

import pytest
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, FashionMNIST

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.files.registry import DATASETS, get_dataset_spec

ALL = pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)


@pytest.mark.parametrize(("name", "reader"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_archives_are_those_of_torchvision(name, reader):
    (file,) = get_dataset_spec(name).files
    assert (file.name, file.md5, file.target) == (
        reader.filename,
        reader.tgz_md5,
        reader.base_folder,
    )
    assert file.urls[-1] == reader.url  # throttled, hence after the mirrors
    assert len(file.urls) > 1


@pytest.mark.parametrize(("index", "split"), [(0, "train"), (1, "test")])
def test_svhn_files_are_those_of_torchvision_and_used_as_they_are(index, split):
    file = get_dataset_spec("svhn").files[index]
    assert [file.urls[0], file.name, file.md5] == SVHN.split_list[split]
    assert file.target == file.name


def test_fashion_mnist_files_are_those_of_torchvision():
    files = get_dataset_spec("fashion-mnist").files
    assert [(file.name, file.md5) for file in files] == FashionMNIST.resources
    assert [file.urls[-1] for file in files] == [
        FashionMNIST.mirrors[0] + name for name, _ in FashionMNIST.resources
    ]
    assert files[0].target == "FashionMNIST/raw/train-images-idx3-ubyte"


@ALL
def test_every_file_has_addresses_a_checksum_and_a_place_below_the_data_folder(spec):
    for file in spec.files:
        assert re.fullmatch(r"[0-9a-f]{32}", file.md5)
        assert file.urls
        assert all(re.match(r"https?://[\w.-]+/", url) for url in file.urls)
        assert "/" not in file.name
        assert not file.target.startswith("/")
        assert ".." not in file.target
        assert file.size is None or file.size > 0


@ALL
def test_every_entry_says_what_it_is_and_under_which_terms(spec):
    assert get_dataset_spec(spec.name) is spec
    assert re.match(r"https?://", spec.page)
    assert re.search(r", (19|20)\d\d, ", spec.citation)
    assert spec.license
    assert spec.num_train > spec.num_classes


@ALL
def test_every_entry_can_be_had_by_a_library_by_files_or_from_the_hub(spec):
    assert (spec.name == "digits") + bool(spec.files) + (spec.hub is not None) == 1


def test_the_copy_of_cars_on_the_hub_is_pinned_to_a_commit():
    hub = get_dataset_spec("cars").hub
    assert hub is not None
    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", hub)


def test_digits_alone_are_not_mirrored():
    assert {spec.name for spec in DATASETS.values() if not spec.hflip} == {"digits", "svhn"}


@pytest.mark.parametrize(
    ("policy", "names"),
    [("cifar10", {"cifar10", "cifar100", "cinic10"}), ("svhn", {"svhn", "digits"})],
)
def test_the_policies_of_autoaugment_go_to_the_images_they_were_searched_on(policy, names):
    assert {spec.name for spec in DATASETS.values() if spec.autoaugment == policy} == names


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar100", (50_000, 0, 10_000)),
        ("svhn", (73_257, 0, 26_032)),
        ("tiny-imagenet", (100_000, 0, 10_000)),
        ("cinic10", (90_000, 90_000, 90_000)),
        ("aircraft", (3_334, 3_333, 3_333)),
        ("cars", (8_144, 0, 8_041)),
        ("fashion-mnist", (60_000, 0, 10_000)),
    ],
)
def test_counts_are_those_of_the_official_splits(name, counts):
    spec = get_dataset_spec(name)
    assert (spec.num_train, spec.num_val, spec.num_test) == counts


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'cifar'; did you mean 'cifar10'"):
        get_dataset_spec("cifar")


def test_a_path_in_place_of_a_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "my cars").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is a path here: give --data 'my cars', in Python data="):
        get_dataset_spec("my cars")
