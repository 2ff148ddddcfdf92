import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.data.files.grey import GreyExtent, choose_range, describe_scale, to_levels
from smallvit.data.files.load import load_dataset


def files(*highs: float, low: float = 0, floats: bool = False) -> list[tuple[str, GreyExtent]]:
    return [(f"{i}.tif", GreyExtent(low, high, floats)) for i, high in enumerate(highs)]


def write(folder: Path, values: np.ndarray, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def ramp(low: float, high: float, dtype: str) -> np.ndarray:
    return np.linspace(low, high, 16 * 16).reshape(16, 16).astype(dtype)


def fill(root: Path, tops: list[float], dtype: str, suffix: str = "tif", low: float = 0) -> Path:
    """Write ramps from ``low`` to each of ``tops``, in turn to two classes."""
    for i, top in enumerate(tops):
        values = np.roll(ramp(low, top, dtype), i)  # no two the same
        write(root / "ab"[i % 2], values, f"{i:02}.{suffix}")
    return root


def load(path: Path, tmp_path: Path, **settings) -> Dataset:
    config = DataConfig(path=path, image_size=16, test_fraction=0.3, val_fraction=0.3, **settings)
    return load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache")


def brightest(dataset: Dataset) -> list[int]:
    return sorted(dataset.splits["train"].images.amax(dim=(1, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("high", "floats", "top"),
    [
        (9, False, 255),
        (255, False, 255),
        (256, False, 1023),
        (4095, False, 4095),
        (4096, False, 16383),
        (65535, False, 65535),
        (0.2, True, 1),
        (1.0003, True, 1),  # resampling leaves floats a little outside
        (1.3, True, 4),
        (18, True, 255),
        (255, True, 255),
        (4000, True, 4095),
    ],
)
def test_the_smallest_usual_range_that_holds_all_files_is_chosen(high, floats, top):
    assert choose_range(files(0, high, 0, floats=floats), "data") == (0, top)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (
            files(3071, low=-1024),
            r"from -1024 to 3071 \(first: 0.tif\).*--data.grey-range -1024 3071",
        ),
        (files(9, 2e6), r"from 0 to 2e\+06 \(first: 1.tif\).*--data.grey-range 0 2e\+06"),
        (files(0.5, low=-0.5, floats=True), r"--data.grey-range -0.5 0.5"),
        (files(-1, low=-1), r"--data.grey-range -1 0$"),
    ],
)
def test_values_of_no_usual_range_ask_for_one(given, remedy):
    with pytest.raises(DataError, match=remedy):
        choose_range(given, "data")


@pytest.mark.parametrize(("top", "shift"), [(255, 0), (1023, 2), (4095, 4), (16383, 6), (65535, 8)])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_whole_bits_keep_the_upper_eight(top, shift, dtype):
    values = np.asarray([[0, 1, 200], [top // 2, top - 1, top]])
    assert np.array_equal(to_levels(values.astype(dtype), (0, top)), values >> shift)


def test_any_range_becomes_0_to_255_and_what_is_outside_is_cut_off():
    values = np.asarray([-2000, -1000, 0, 1000, 3000], dtype=np.int32)
    assert to_levels(values, (-1000, 1000)).tolist() == [0, 0, 128, 255, 255]
    assert to_levels(values.astype(np.float32), (-1000, 1000)).tolist() == [0, 0, 128, 255, 255]


def test_a_range_that_is_mostly_unused_is_said_with_one_that_is_not():
    scale = describe_scale(files(9, 14), (0, 255), given=False)
    (note,) = (note for note in scale.notes if "unused" in note)
    assert note.endswith("--data.grey-range 0 14 would use it")
    assert not describe_scale(files(200, 255), (0, 255), given=False).notes


@pytest.mark.parametrize(("low", "high"), [(0, 0.2), (-0.3, 0.2)])
def test_the_range_that_would_use_floats_below_one_is_theirs(low, high):
    scale = describe_scale(files(high, low=low, floats=True), (-2.0, 2.0), given=True)
    assert f"is lost: --data.grey-range {low:g} {high:g} would use it" in scale.notes[0]


def test_files_that_disagree_are_said_by_name():
    (note,) = describe_scale(files(60000, 65535, 3000), (0, 65535), given=False).notes
    assert note.startswith("1 of 3 files with grey values of more than 8 bits are nearly black")
    assert "first: 2.tif (0 to 3000)" in note


def test_a_given_range_that_cuts_values_off_or_is_not_used_is_said():
    (note,) = describe_scale(files(4095, 9000), (0, 4095), given=True).notes
    assert "1 of 2 files with grey values of more than 8 bits have values outside" in note
    (note,) = describe_scale([], (0, 4095), given=True).notes
    assert "data.grey_range is not used" in note


@pytest.mark.parametrize("given", [(1.0, 1.0), (5.0, 1.0), (0.0, float("inf"))])
def test_a_range_that_holds_nothing_is_refused(given):
    with pytest.raises(ConfigError, match=r"data.grey_range must be the values of black and white"):
        DataConfig(grey_range=given)


def test_one_float_just_over_one_darkens_no_file(tmp_path):
    dataset = load(fill(tmp_path / "g", [1.0] * 23 + [1.0003], "float32"), tmp_path)
    assert brightest(dataset) == [255] * 24
    assert dataset.grey_range == (0, 1)
    assert dataset.notes == ()


def test_counts_around_255_share_one_scale(tmp_path):
    dataset = load(fill(tmp_path / "g", [250, 260] * 8, "int32"), tmp_path)
    assert brightest(dataset) == [62] * 8 + [65] * 8
    assert dataset.grey_range == (0, 1023)


def test_twelve_bits_in_files_of_sixteen_reach_white(tmp_path):
    dataset = load(fill(tmp_path / "g", [4095, 2000] * 8, "uint16", "png"), tmp_path)
    assert brightest(dataset) == [125] * 8 + [255] * 8
    assert dataset.grey_range == (0, 4095)


def test_signed_values_take_the_range_that_the_message_names(tmp_path):
    root = fill(tmp_path / "g", [3071, 2000] * 8, "int32", low=-1024)
    with pytest.raises(DataError, match=r"--data.grey-range -1024 3071$"):
        load(root, tmp_path)
    dataset = load(root, tmp_path, grey_range=(-1024.0, 3071.0))
    assert brightest(dataset)[-1] == 255
    assert dataset.splits["train"].images.min() == 0


def test_files_with_nan_are_left_out_by_name(tmp_path):
    root = fill(tmp_path / "g", [1.0] * 20, "float32")
    values = ramp(0, 1, "float32")
    values[3, 3] = np.nan
    write(root / "a", values, "nan.tif")
    (broken,) = load(root, tmp_path).broken
    assert broken.startswith("a/nan.tif (it holds grey values that are no numbers")


def test_eight_bit_files_beside_them_stay_as_they_are(tmp_path):
    root = fill(tmp_path / "g", [4095] * 16, "uint16", "png")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    write(root / "a", pixels, "zz.png")
    images = load(root, tmp_path).splits["train"].images
    assert any(np.array_equal(image, pixels.transpose(2, 0, 1)) for image in images.numpy())


def test_files_of_eight_bits_are_read_once(tmp_path, monkeypatch):
    root, opened = fill(tmp_path / "g", [200] * 16, "uint8", "png"), []
    write(root / "a", ramp(0, 4095, "uint16"), "deep.png")
    from smallvit.data.files import sources

    original = sources.open_image
    monkeypatch.setattr(
        sources, "open_image", lambda file: (opened.append(file), original(file))[1]
    )
    load(root, tmp_path)
    assert len(opened) == 17 + 1


def test_more_files_may_change_the_scale_and_so_the_fingerprint(tmp_path):
    root = fill(tmp_path / "g", [4095] * 16, "uint16", "png")
    first = load(root, tmp_path)
    write(root / "a", ramp(0, 65535, "uint16"), "more.png")
    second = load(root, tmp_path)
    assert (first.grey_range, second.grey_range) == ((0, 4095), (0, 65535))
    assert first.fingerprint != second.fingerprint
    assert load(root, tmp_path, grey_range=(0.0, 4095.0)).grey_range == (0, 4095)


def test_a_store_that_is_opened_again_knows_its_scale(tmp_path):
    root = fill(tmp_path / "g", [4095, 90] * 8, "uint16", "png")
    first, again = load(root, tmp_path), load(root, tmp_path)
    assert first.grey == again.grey
    assert "nearly black" in again.notes[0]


def test_two_splits_share_one_scale(tmp_path):
    for split, top in (("train", 4095), ("val", 4095), ("test", 60000)):
        fill(tmp_path / "g" / split, [top] * 6, "uint16", "png")
    dataset = load(tmp_path / "g", tmp_path)
    assert dataset.grey_range == (0, 65535)
    assert int(dataset.splits["train"].images.max()) == 15
    assert int(dataset.splits["test"].images.max()) == 234


def test_data_without_such_files_say_nothing_of_grey(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(fill(tmp_path / "g", [200] * 16, "uint8", "png"), tmp_path)
    assert (dataset.grey, dataset.grey_range, dataset.notes) == ("", None, ())
