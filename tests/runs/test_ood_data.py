from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.runs.data import load_dataset
from smallvit.runs.ood_data import open_foreign


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Dataset:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    return load_dataset(DataConfig(dataset="digits"))


def write_noise(folder: Path, num: int, side: int = 11) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(num):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def write_digits(digits: Dataset, folder: Path, num: int) -> None:
    images = digits.splits["train"].take(torch.arange(num))
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"digit-{i}.png")


def read(foreign, batch_size: int = 7) -> torch.Tensor:
    return torch.cat(list(foreign.batches(batch_size)))


def test_noise_is_two_sets_of_as_many_images_as_are_tested(digits):
    sets = open_foreign("noise", digits)
    assert [foreign.name for foreign in sets] == ["uniform-noise", "gaussian-noise"]
    for foreign in sets:
        assert foreign.num_images == len(digits.splits["test"])
        assert read(foreign, 100).shape == (foreign.num_images, 3, 8, 8)
    assert torch.equal(read(sets[0], 100), read(open_foreign("noise", digits)[0], 33))
    assert not torch.equal(read(sets[0]), read(open_foreign("noise", digits, seed=1)[0]))


def test_a_folder_of_images_comes_at_the_size_of_the_classifier(digits, tmp_path):
    folder = write_noise(tmp_path / "noisy", 12)
    (foreign,) = open_foreign(str(folder), digits)
    assert (foreign.name, foreign.num_images) == ("noisy", 12)
    images = read(foreign)
    assert images.dtype == torch.uint8
    assert images.shape == (12, 3, 8, 8)


def test_of_a_folder_with_splits_the_test_images_are_taken(digits, tmp_path):
    for split, num in (("train", 5), ("test", 3)):
        for label in ("cat", "dog"):
            write_noise(tmp_path / "pets" / split / label, num)
    (foreign,) = open_foreign(str(tmp_path / "pets"), digits)
    assert foreign.num_images == 6


def test_a_choice_of_many_images_is_by_the_seed(digits, tmp_path):
    folder = str(write_noise(tmp_path / "noisy", 20))
    everything = read(open_foreign(folder, digits)[0])
    chosen = [read(open_foreign(folder, digits, seed=seed, most=6)[0]) for seed in (0, 0, 1)]
    assert [len(images) for images in chosen] == [6, 6, 6]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    # Not the first six: class folders would give images of one class.
    assert not torch.equal(chosen[0], everything[:6])


def test_classes_that_the_classifier_knows_are_refused(digits, tmp_path):
    for label in ("3", "dog"):
        write_noise(tmp_path / "mixed" / label, 2)
    with pytest.raises(ConfigError, match=r"1 of its classes are of digits too \(3\)") as caught:
        open_foreign(str(tmp_path / "mixed"), digits)
    assert "\n" not in str(caught.value)


def test_the_images_of_the_classifier_are_refused(digits):
    with pytest.raises(ConfigError, match="--ood digits: the classifier was trained on digits"):
        open_foreign("digits", digits)


def test_a_copy_of_its_images_is_refused_by_the_pixels(digits, tmp_path):
    folder = write_noise(tmp_path / "copies", 20)
    write_digits(digits, folder, 5)
    with pytest.raises(ConfigError, match="5 of its 25 images are in digits too"):
        open_foreign(str(folder), digits)


def test_a_chance_repeat_is_left_out_and_said(digits, tmp_path, caplog):
    folder = write_noise(tmp_path / "copies", 120, side=8)
    write_digits(digits, folder, 1)
    (foreign,) = open_foreign(str(folder), digits)
    assert foreign.num_images == 120
    assert "1 of the 121 images" in caplog.text
    first = digits.splits["train"].take(torch.tensor([0]))
    assert not (read(foreign) == first).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cinic10", "cifar10"),
        ("cifar10", "cinic10"),
        ("cifar10", "cifar10-jpeg"),
        ("cinic10", "my-cifar-10"),
    ],
)
def test_sets_that_share_images_are_refused_before_anything_is_fetched(name, own, digits):
    with pytest.raises(ConfigError, match=f"{name} and {own} share images and classes"):
        open_foreign(name, replace(digits, name=own))


def test_an_unknown_name_is_answered_by_the_nearest(digits):
    with pytest.raises(UnknownNameError, match="'nose'; did you mean 'noise'"):
        open_foreign("nose", digits)


def test_folders_that_a_classifier_could_not_be_trained_on_are_foreign_images(digits, tmp_path):
    for split in ("training_set", "test_set"):
        for label in ("cat", "dog"):
            write_noise(tmp_path / "pets" / split / label, 3)
    (foreign,) = open_foreign(str(tmp_path / "pets"), digits)
    assert foreign.num_images == 12


def test_foreign_grey_values_have_the_scale_of_the_classifiers(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    for name, top, num in (("own", 4095, 40), ("foreign", 1000, 4)):
        for i in range(num):
            values = np.random.default_rng([top, i]).integers(0, top, (8, 8), dtype=np.uint16)
            values[0, 0] = top
            folder = tmp_path / name / "ab"[i % 2] if name == "own" else tmp_path / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / f"{i}.png")
    own = load_dataset(DataConfig(path=tmp_path / "own", image_size=8))
    (foreign,) = open_foreign(str(tmp_path / "foreign"), own)
    assert int(read(foreign).max()) == 1000 * 256 // 4096
