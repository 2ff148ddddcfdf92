import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.segment.config import SegmentDataConfig
from smallvit.segment.data import IGNORED, SegmentData, load_segment_data

WHOLE = {"train": 4, "val": 2, "test": 2}


@pytest.fixture
def load(tmp_path):
    def load_folder(folder: Path, **settings) -> SegmentData:
        config = SegmentDataConfig(path=folder, **settings)
        return load_segment_data(config, cache_dir=tmp_path / "cache")

    return load_folder


def read(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def save_mask(folder: Path, values, *, split: str = "train", name: str = "0") -> Path:
    path = folder / "masks" / split / f"{name}.png"
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)
    return path


def save_pair(folder: Path, pixels: np.ndarray, mask: np.ndarray, name: str) -> None:
    Image.fromarray(pixels).save(folder / "images" / "train" / f"{name}.png")
    save_mask(folder, mask, name=name)


def test_masks_keep_their_pixels_and_go_with_their_images(shapes, load):
    folder = shapes(WHOLE)
    data = load(folder)
    assert (data.dataset.image_size, data.class_names) == (16, ("class 0", "class 1", "class 2"))
    for i, split in enumerate(("val", "test")):
        for place in range(2):
            mask = read(folder / "masks" / split / f"{place}.png")
            index = 4 + 2 * i + place
            assert index in data.dataset.splits[split].index
            assert np.array_equal(data.masks[index], mask)
            pixels = read(next((folder / "images" / split).glob(f"{place}.*")))
            assert np.array_equal(
                data.dataset.splits[split].images[index], pixels.transpose(2, 0, 1)
            )


def test_palette_and_grey_masks_say_the_same(shapes, load):
    folder = shapes(WHOLE)
    before = load(folder)
    for path in (folder / "masks").rglob("*.png"):
        with Image.open(path) as opened:
            mask = opened.copy()
        mask.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        assert mask.mode == "P"
        mask.save(path)
    assert np.array_equal(load(folder).masks, before.masks)


def test_a_wide_image_is_centred_on_its_mean_and_what_is_beside_it_ignored(shapes, load):
    folder = shapes(WHOLE)
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 8:] = 200
    mask = np.repeat([[1, 2]], 8, axis=0).repeat(8, axis=1)
    save_pair(folder, pixels, mask, "0")
    data = load(folder)
    fitted, image = data.masks[0].numpy(), data.dataset.splits["train"].images[0]
    assert (fitted[:4] == IGNORED).all()
    assert (fitted[12:] == IGNORED).all()
    assert np.array_equal(fitted[4:12], mask)
    assert (image[:, :4] == 100).all()
    assert (image[:, 4:12, 12] == 200).all()


def test_masks_are_resized_by_nearest_neighbour(shapes, load):
    """No index between two classes appears, as a mean of them would."""
    folder = shapes(WHOLE, side=30)
    data = load(folder, image_size=16)
    assert set(data.masks.unique().tolist()) == {0, 1, 2}
    ours = data.masks[0].numpy()
    theirs = read(folder / "masks" / "train" / "0.png")
    centres = ((np.arange(16) + 0.5) * 30 / 16).astype(int)
    assert np.array_equal(ours, theirs[centres][:, centres])


def test_names_come_from_classes_txt(shapes, load):
    folder = shapes(WHOLE)
    (folder / "classes.txt").write_text("ground\ndisc\nsquare\nnever seen\n")
    assert load(folder).class_names == ("ground", "disc", "square", "never seen")


def test_what_is_not_given_is_cut_from_train_once_and_for_all(shapes, load):
    folder = shapes({"train": 20})
    first, again = load(folder), load(folder)
    sizes = {name: len(split) for name, split in first.dataset.splits.items()}
    assert sizes["train"] + sizes["val"] + sizes["test"] == 20
    assert min(sizes.values()) > 0
    assert first.dataset.split_hashes == again.dataset.split_hashes
    assert load(folder, split_seed=1).dataset.split_hashes != first.dataset.split_hashes
    parts = [set(first.dataset.splits[name].index.tolist()) for name in ("train", "val", "test")]
    assert set.union(*parts) == set(range(20))


def test_only_a_missing_split_is_cut(shapes, load):
    data = load(shapes({"train": 20, "test": 3}))
    sizes = {name: len(split) for name, split in data.dataset.splits.items()}
    assert sizes["train"] + sizes["val"] == 20
    assert sizes["test"] == 3


def test_an_image_on_both_sides_is_said(shapes, load, caplog):
    folder = shapes(WHOLE)
    first = next((folder / "images" / "train").iterdir())
    (folder / "images" / "test" / first.name).write_bytes(first.read_bytes())
    (folder / "masks" / "test" / first.name).write_bytes(
        (folder / "masks" / "train" / first.name).read_bytes()
    )
    with caplog.at_level("WARNING", logger="smallvit"):
        load(folder)
    assert "test images of" in caplog.text
    assert "are in train too, and flatter its scores: remove them from one" in caplog.text


def test_a_changed_mask_changes_the_fingerprint(shapes, load):
    folder = shapes(WHOLE)
    before = load(folder).dataset.fingerprint
    save_mask(folder, np.ones((16, 16)))
    assert load(folder).dataset.fingerprint != before


def rgb_mask(folder):
    save_mask(folder, np.zeros((16, 16, 3)))


def deep_mask(folder):
    Image.fromarray(np.zeros((16, 16), dtype=np.uint16)).save(folder / "masks/train/0.png")


def four_bit_mask(folder):
    (folder / "masks/train/0.png").write_bytes(grey_png(16, bits=4))


def grey_png(side: int, *, bits: int) -> bytes:
    """A PNG that PIL reads but does not write: grey of fewer than 8 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + side * bits // 8) * side)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def no_mask(folder):
    (folder / "masks/val/1.png").unlink()


def no_image(folder):
    (folder / "images/val/1.png").unlink()


def no_folder(folder):
    (folder / "images/train").rename(folder / "images/training")


def other_size(folder):
    save_mask(folder, np.zeros((16, 8)))


def twins(folder):
    Image.new("RGB", (16, 16)).save(folder / "images/train/0.jpg")


def broken_image(folder):
    path = folder / "images/train/0.png"
    path.write_bytes(path.read_bytes()[:200])


def one_class(folder):
    for path in (folder / "masks/train").iterdir():
        save_mask(folder, np.where(np.arange(16) < 8, 0, 255) * np.ones((16, 1)), name=path.stem)


def gaps(folder):
    for path in (folder / "masks/train").iterdir():
        save_mask(folder, np.where(np.arange(16) < 8, 0, 128) * np.ones((16, 1)), name=path.stem)


def outside(folder):
    save_mask(folder, np.full((16, 16), 7), split="test", name="1")


def outside_of_the_list(folder):
    (folder / "classes.txt").write_text("ground\ndisc\n")


def named_twice(folder):
    (folder / "classes.txt").write_text("ground\ndisc\ndisc\n")


def ignored_split(folder):
    for name in ("0", "1"):
        save_mask(folder, np.full((16, 16), IGNORED), split="val", name=name)


MISTAKES = {
    rgb_mask: r"masks/train/0.png is a mask of mode RGB .*save it as 8-bit grey",
    deep_mask: r"masks/train/0.png is a mask of mode I;16",
    four_bit_mask: r"\(L;4\), whose values are no class indices",
    no_mask: r"1 of 2 files have no mask, first: images/val/1.png: expected",
    no_image: r"1 of 2 files have no image, first: masks/val/1.png: expected",
    no_folder: r"no images/train in .*: expected images/train/NAME",
    other_size: r"masks/train/0.png has 8 x 16 px, its image 16 x 16",
    twins: r"0.jpg and 0.png would have one mask: remove one of them, or rename",
    broken_image: r"images/train/0.png cannot be decoded",
    one_class: r"hold 255, which is ignored, and one class beside it \(index 0\): .*save it as 1",
    gaps: r"leave gaps \(0, 128\): number the classes from 0 on",
    outside: r"masks/test/1.png holds index 7, which is no class: the train masks hold 3",
    outside_of_the_list: r"holds index 2, which is no class: .*classes.txt names 2 classes",
    named_twice: r"classes.txt names a class twice",
    ignored_split: r"every pixel of the val masks is 255",
}


@pytest.mark.parametrize("spoil", MISTAKES, ids=lambda spoil: spoil.__name__)
def test_a_mistake_is_named_in_one_line(spoil, shapes, load):
    folder = shapes(WHOLE)
    load(folder)
    spoil(folder)
    with pytest.raises(DataError, match=MISTAKES[spoil]) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_too_few_images_to_cut_from_are_refused(shapes, load):
    folder = shapes({"train": 2})
    with pytest.raises(DataError, match="none of the 2 images falls into the test split: add"):
        load(folder)


def test_a_folder_has_to_be_named(tmp_path):
    with pytest.raises(ConfigError, match="give --data FOLDER"):
        load_segment_data(SegmentDataConfig(), cache_dir=tmp_path)


def test_masks_of_black_and_white_are_told_to_be_saved_as_0_and_1(shapes, load):
    folder = shapes(WHOLE)
    masks = {path: read(path) for path in (folder / "masks").rglob("*.png")}
    for path, mask in masks.items():
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match="where 255 is the object, save it as 1"):
        load(folder)
    for path, mask in masks.items():
        Image.fromarray((mask > 0).astype(np.uint8)).save(path)
    assert load(folder).class_names == ("class 0", "class 1")


def test_a_mask_of_another_format_is_named_and_read_once_it_is_png(shapes, load):
    folder = shapes(WHOLE)
    path = folder / "masks" / "train" / "1.png"
    path.rename(path.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"first: images/train/1.*: save .*train/1\.bmp as PNG"):
        load(folder)
    path.with_suffix(".bmp").rename(path)
    load(folder)


def test_renamed_pairs_in_another_order_are_the_same_data(shapes, load):
    folder = shapes({"train": 20, "test": 3})
    before = load(folder).dataset
    for kind in ("images", "masks"):
        for path in list((folder / kind).rglob("*.*")):
            path.rename(path.with_stem(f"{'zyxwvutsrqponmlkjihgfe'[int(path.stem)]}"))
    after = load(folder).dataset
    assert after.fingerprint == before.fingerprint
    assert after.split_hashes == before.split_hashes
    for name, split in before.splits.items():
        index = after.splits[name].index
        assert after.splits[name].images[index].equal(split.images[split.index])


def test_the_first_cut_goes_by_the_order_of_names(shapes, load):
    dataset = load(shapes({"train": 20}), split_version=1).dataset
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    assert sizes == {"train": 14, "labelled": 14, "val": 2, "test": 4}
    assert all((split.index.diff() > 0).all() for split in dataset.splits.values())
