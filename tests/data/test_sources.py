from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import DataError, UnknownNameError
from smallvit.data.registry import get_dataset_spec
from smallvit.data.sources import open_folder, open_named, to_rgb


def colours(array: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, array.reshape(3, -1).T.tolist()))


def save(path: Path, color: tuple[int, int, int] = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


def test_rgb_of_the_wanted_size_is_only_transposed():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_rgb(Image.fromarray(pixels), 8), pixels.transpose(2, 0, 1))


def test_grey_is_repeated_over_the_channels():
    assert colours(to_rgb(Image.new("L", (8, 8), 77), 8)) == {(77, 77, 77)}


def test_grey_with_alpha_and_one_bit_images_become_rgb():
    assert colours(to_rgb(Image.new("LA", (8, 8), (0, 0)), 8)) == {(255, 255, 255)}
    assert colours(to_rgb(Image.new("1", (8, 8), 1), 8)) == {(255, 255, 255)}


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (255, 255, 255)), (255, (10, 20, 30)), (51, (206, 208, 210))]
)
def test_transparency_is_laid_over_white(alpha, expected):
    (found,) = colours(to_rgb(Image.new("RGBA", (8, 8), (10, 20, 30, alpha)), 8))
    assert np.abs(np.subtract(found, expected)).max() <= 1


def test_cmyk_black_and_white_stay_black_and_white():
    assert colours(to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), 8)) == {(0, 0, 0)}
    assert colours(to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 8)) == {(255, 255, 255)}


def test_a_palette_image_takes_the_colours_of_its_palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert colours(to_rgb(image, 8)) == {(200, 100, 50)}


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=1)
    with Image.open(tmp_path / "a.png") as opened:
        assert colours(to_rgb(opened, 8)) == {(255, 255, 255)}


def test_sixteen_bit_grey_is_scaled_to_eight_bits(tmp_path):
    values = np.asarray([[0, 255], [256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "I;16"
        assert to_rgb(opened, 2)[0].tolist() == [[0, 0], [1, 255]]


@pytest.mark.parametrize(("top", "expected"), [(65535, 255), (200, 200), (0, 0)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_grey_without_a_range_is_scaled_where_it_needs_sixteen_bits(dtype, top, expected):
    image = Image.fromarray(np.full((4, 4), top, dtype=dtype))
    assert colours(to_rgb(image, 4)) == {(expected,) * 3}


def test_one_pixel_fills_the_image():
    assert colours(to_rgb(Image.new("RGB", (1, 1), (9, 8, 7)), 16)) == {(9, 8, 7)}


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (7, 30), (31, 17)])
def test_any_shape_becomes_a_square(size):
    found = to_rgb(Image.new("RGB", size, (1, 2, 3)), 8)
    assert found.shape == (3, 8, 8)
    assert found.dtype == np.uint8


def test_a_wide_image_is_cut_to_its_centre():
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 255
    assert colours(to_rgb(Image.fromarray(pixels), 8)) == {(255, 255, 255)}


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255  # the upper half; orientation 6 turns it a quarter clockwise, to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        found = to_rgb(opened, 8)
    assert found[:, :, 4:].min() == 255
    assert found[:, :, :4].max() == 0


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    (tmp_path / "train" / "b").mkdir(parents=True)
    frames[0].save(tmp_path / "train" / "b" / "a.gif", save_all=True, append_images=frames[1:])
    save(tmp_path / "train" / "a" / "a.png")
    image = open_folder(tmp_path).splits["train"].read(1)
    assert colours(to_rgb(image, 8)) == {(255, 0, 0)}


def test_a_folder_of_class_folders_is_one_training_split(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x.png", "a/notes.txt", "a/.hidden.png"):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    source = open_folder(tmp_path)
    assert source.class_names == ("a", "b")
    assert list(source.splits) == ["train"]
    assert list(source.splits["train"].names) == ["a/x.png", "b/1.JPG", "b/2.png"]
    assert source.splits["train"].labels.tolist() == [0, 1, 1]


def test_images_inside_a_hidden_folder_are_passed_over(tmp_path):
    for name in ("a/x.png", "b/x.png", "a/.ipynb_checkpoints/x-checkpoint.png"):
        save(tmp_path / name)
    assert list(open_folder(tmp_path).splits["train"].names) == ["a/x.png", "b/x.png"]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_become_splits(tmp_path, val):
    for split in ("train", val, "test"):
        for label in ("a", "b"):
            save(tmp_path / split / label / "1.png")
    source = open_folder(tmp_path)
    assert set(source.splits) == {"train", "val", "test"}
    assert list(source.splits["val"].names) == [f"{val}/a/1.png", f"{val}/b/1.png"]


def test_names_may_have_dots_spaces_and_sub_folders(tmp_path):
    top = tmp_path / "my.data.v1.2"
    for name in ("n.01 x/im.age.1.png", "n.02/deep/er/2.png"):
        save(top / name)
    source = open_folder(top)
    assert source.name == "my.data.v1.2"
    assert source.class_names == ("n.01 x", "n.02")
    assert source.splits["train"].read(1).size == (8, 8)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder at .*nowhere"):
        open_folder(tmp_path / "nowhere")


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path):
    save(tmp_path / "test" / "a" / "1.png")
    with pytest.raises(DataError, match="has test but no train folder"):
        open_folder(tmp_path)


def test_fewer_than_two_classes_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 1 class folders with images; at least 2"):
        open_folder(tmp_path)


def test_splits_with_other_classes_are_refused_by_name(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"classes of .*test and .*train differ: \['b', 'c'\]"):
        open_folder(tmp_path)


def test_key_of_a_folder_changes_with_its_files_and_not_without(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name)
    before = open_folder(tmp_path).key
    assert open_folder(tmp_path).key == before
    save(tmp_path / "b/2.png")
    assert open_folder(tmp_path).key != before


def test_digits_are_the_images_of_scikit_learn_and_are_not_mirrored(tmp_path):
    spec = get_dataset_spec("digits")
    source = open_named(spec, data_dir=tmp_path, offline=True)
    split = source.splits["train"]
    assert len(split.names) == len(split.labels) == spec.num_train
    assert split.read(0).size == (8, 8)
    assert np.asarray(split.read(0)).max() <= 255
    assert np.asarray(split.read(0))[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert source.hflip is False


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'cifar'; did you mean 'cifar10'"):
        get_dataset_spec("cifar")
