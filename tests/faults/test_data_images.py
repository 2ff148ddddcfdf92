"""Folders of images that are broken, odd, dangerous or do not go together, by the command line."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from smallvit.cli.app import main
from smallvit.data.files.own import open_path
from smallvit.data.files.store import open_store


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 150 images."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for i in range(300):
        path = root / "ab"[i % 2] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def get(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Pack and return the exit code and the last line of what was said."""
    capsys.readouterr()
    code = main(["data", "get", str(path)])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def png_header(width: int, height: int) -> bytes:
    """Return a PNG image that says it has so many pixels and brings none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_broken_files_are_counted_and_named_and_no_neighbour_takes_their_place(photos, capsys):
    whole = open_store(open_path(photos), image_size=32, cache_dir=photos.parent / "whole")
    cut(photos / "a" / "000.jpg")
    (photos / "a" / "002.jpg").write_bytes(b"")
    (photos / "b" / "003.jpg").write_text("no image")
    code, line = get(photos, capsys)
    assert code == 0  # three of 300 are one in a hundred, and no more
    assert "photos: 3 files could not be decoded and are left out: a/000.jpg (image file is" in line
    assert "a/002.jpg (the file is empty), b/003.jpg (no image, or of a format" in line
    (manifest,) = (photos.parent / "cache").rglob("manifest.json")
    assert len(json.loads(manifest.read_text())["broken"]) == 3
    kept = np.load(manifest.with_name("train.images.npy"))
    labels = np.load(manifest.with_name("train.labels.npy"))
    left_out = [0, 1, 151]  # in the order of classes, then names
    np.testing.assert_array_equal(kept, np.delete(whole.images["train"], left_out, axis=0))
    np.testing.assert_array_equal(labels, np.delete(whole.facts["train"].labels, left_out))


def test_more_broken_files_than_one_in_a_hundred_end_with_their_number(photos, capsys):
    for i in (0, 2, 4, 6):
        cut(photos / "a" / f"{i:03}.jpg")
    code, line = get(photos, capsys)
    assert code == 3
    assert line.startswith(
        "smallvit: photos: 4 of 300 files cannot be decoded, and no more than 3 may"
    )
    assert "a/000.jpg" in line
    assert not list((photos.parent / "cache").rglob("*.npy"))


def test_a_few_files_of_a_small_set_may_be_broken_and_are_named(photos, capsys):
    for i in range(60, 300):
        (photos / "ab"[i % 2] / f"{i:03}.jpg").unlink()
    cut(photos / "a" / "000.jpg")
    code, line = get(photos, capsys)
    assert code == 0
    assert "photos: 1 files could not be decoded and are left out: a/000.jpg (image file" in line
    for i in (2, 4, 6):
        cut(photos / "a" / f"{i:03}.jpg")
    code, line = get(photos, capsys)
    assert code == 3
    assert "4 of 60 files cannot be decoded, and no more than 3 may be left out" in line
    for i in (4, 6):  # the remedy
        (photos / "a" / f"{i:03}.jpg").unlink()
    assert get(photos, capsys)[0] == 0


def test_a_class_whose_files_are_all_broken_is_named(photos, capsys):
    (photos / "c").mkdir()
    (photos / "c" / "only.jpg").write_bytes(b"")
    code, line = get(photos, capsys)
    assert code == 3
    assert "photos: no image of c in train can be decoded; first: c/only.jpg (the file is" in line
    Image.new("RGB", (16, 16), "red").save(photos / "c" / "only.jpg")  # the remedy
    Image.new("RGB", (16, 16), "green").save(photos / "c" / "more.jpg")
    Image.new("RGB", (16, 16), "blue").save(photos / "c" / "most.jpg")
    assert get(photos, capsys)[0] == 0


def test_a_bomb_is_left_out_by_its_header(photos, capsys):
    (photos / "a" / "000.jpg").write_bytes(png_header(20_000, 20_000))
    code, line = get(photos, capsys)
    assert code == 0
    assert "1 files could not be decoded and are left out: a/000.jpg (more than 178," in line


# One colour each, in every way that files keep it; the value that is wanted of each channel.
KINDS: dict[str, tuple[Callable[[Path], None], tuple[int, int, int]]] = {
    "grey.png": (lambda p: Image.new("L", (9, 9), 90).save(p), (90, 90, 90)),
    "alpha.png": (lambda p: Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(p), (255, 255, 255)),
    "cmyk.tif": (lambda p: Image.new("CMYK", (9, 9), (255, 0, 0, 0)).save(p), (0, 255, 255)),
    "deep.png": (
        lambda p: Image.fromarray(np.full((9, 9), 40 << 4, np.uint16)).save(p),
        (160,) * 3,
    ),
    "palette.png": (
        lambda p: Image.new("RGB", (9, 9), (10, 200, 30)).quantize(2).save(p),
        (10, 200, 30),
    ),
    "animated.gif": (
        lambda p: Image.new("RGB", (9, 9), "red").save(
            p, save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")]
        ),
        (255, 0, 0),
    ),
    "dot.png": (lambda p: Image.new("RGB", (1, 1), (1, 2, 3)).save(p), (1, 2, 3)),
    "wide.png": (lambda p: Image.new("RGB", (20_000, 4), (7, 8, 9)).save(p), (7, 8, 9)),
}


def test_images_of_every_kind_are_packed_in_their_colours(tmp_path):
    for name, (save, _) in KINDS.items():
        for label in "ab":
            (tmp_path / "kinds" / label).mkdir(parents=True, exist_ok=True)
            save(tmp_path / "kinds" / label / name)
    store = open_store(open_path(tmp_path / "kinds"), image_size=8, cache_dir=tmp_path / "cache")
    assert store.manifest.broken == ()
    for image, name in zip(store.images["train"][: len(KINDS)], sorted(KINDS), strict=True):
        wanted = np.broadcast_to(np.array(KINDS[name][1])[:, None, None], (3, 8, 8))
        np.testing.assert_allclose(image, wanted, atol=1, err_msg=name)


def test_a_photograph_held_upright_is_turned(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, 0] = 255  # the left side; turned clockwise it is the top
    for label in "ab":
        (tmp_path / "turned" / label).mkdir(parents=True)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(pixels).save(tmp_path / "turned" / label / "x.png", exif=exif)
    store = open_store(open_path(tmp_path / "turned"), image_size=8, cache_dir=tmp_path / "cache")
    assert (store.images["train"][0, :, 0] == 255).all()
    assert not store.images["train"][0, :, 1:].any()


def split(photos: Path, **classes: str) -> None:
    """Move the classes into split folders, with some of them in each."""
    for name, labels in classes.items():
        for label in labels:
            shutil.copytree(photos / "a", photos / name / label)
    shutil.rmtree(photos / "a")
    shutil.rmtree(photos / "b")


def make_table(photos: Path, *rows: str) -> Path:
    (photos / "table.csv").write_text("\n".join(["image_path,label,split", *rows]))
    return photos / "table.csv"


DEFECTS: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "an empty class": (lambda p: (p / "c").mkdir(), "class folder 'c' has no image"),
    "an empty class of test": (
        lambda p: split(p, train="ab", test="a") or (p / "test" / "b").mkdir(),
        "class folder 'b' has no image: add images of 'b' to test",
    ),
    "other classes in val": (
        lambda p: split(p, train="ab", val="ac"),
        "all 3 classes (train 2, val 2): no c in train; no b in val",
    ),
    "one class": (lambda p: shutil.rmtree(p / "a"), "1 class folder with images; at least 2"),
    "no images": (lambda p: split(p), "has no images: give a folder"),
    "test without train": (lambda p: split(p, test="ab"), "has test but no train folder"),
    "a file in two splits": (
        lambda p: make_table(p, "a/000.jpg,a,train", "a/000.jpg,a,test", "b/001.jpg,b,train"),
        "names a/000.jpg in two splits, train and test (lines 2 and 3)",
    ),
    "a file with two labels": (
        lambda p: make_table(p, "a/000.jpg,a,train", "a/000.jpg,b,train"),
        "with two labels, 'a' and 'b' (lines 2 and 3)",
    ),
    "a split of no name": (
        lambda p: make_table(p, "a/000.jpg,a,train", "b/001.jpg,b,tset"),
        "line 3: unknown split 'tset'",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_data_that_do_not_go_together_are_refused_before_they_are_packed(photos, capsys, defect):
    make, message = DEFECTS[defect]
    code, line = get(make(photos) or photos, capsys)
    assert (code, message in line) == (3, True), line
    assert line.startswith("smallvit: ")
    assert not (photos.parent / "cache").exists()


def test_images_that_are_in_two_splits_are_counted(photos, capsys):
    split(photos, train="a", test="a")
    for name, levels in {"train": range(20), "test": range(20, 21)}.items():
        (photos / name / "b").mkdir()
        for level in levels:
            Image.new("RGB", (16, 16), (level,) * 3).save(photos / name / "b" / f"{level}.png")
    code, line = get(photos, capsys)
    assert code == 0
    assert "150 of 151 test images are also in train (same pixels)" in line
    assert "the test accuracy may be up to 99.3 points too high" in line
