import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import DataError
from smallvit.data.sources import open_folder
from smallvit.data.store import PackedStore, open_store


def make_folder(top: Path, num: int = 3) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (2 * num, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = top / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return top


def pack(top: Path, cache: Path, **options) -> PackedStore:
    return open_store(open_folder(top), image_size=8, cache_dir=cache, **options)


def only_store(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "packed").iterdir() if path.is_dir())
    return folder


def test_packed_pixels_and_labels_are_those_of_the_files(tmp_path):
    top = make_folder(tmp_path / "data")
    store = pack(top, tmp_path)
    source = open_folder(top).splits["train"]
    for i in range(6):
        expected = np.asarray(source.read(i)).transpose(2, 0, 1)
        assert np.array_equal(store.images["train"][i], expected)
    assert store.labels["train"].tolist() == [0, 0, 0, 1, 1, 1]
    assert store.manifest.counts == {"train": 6}


def test_a_store_is_packed_once(tmp_path):
    top, calls = make_folder(tmp_path / "data"), []
    for _ in range(2):
        pack(top, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 6), (6, 6)]


def test_fingerprint_is_the_same_wherever_and_whenever_it_is_packed(tmp_path):
    top = make_folder(tmp_path / "data")
    first = pack(top, tmp_path / "one").manifest.fingerprint
    assert pack(top, tmp_path / "one").manifest.fingerprint == first
    assert pack(top, tmp_path / "two").manifest.fingerprint == first


def test_a_changed_file_is_packed_anew(tmp_path):
    top = make_folder(tmp_path / "data")
    first = pack(top, tmp_path)
    path = top / "a" / "000.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    second = pack(top, tmp_path)
    assert second.path != first.path
    assert second.manifest.fingerprint != first.manifest.fingerprint
    assert second.images["train"][0, :, 0, 0].tolist() == [1, 2, 3]


def test_another_image_size_is_another_store(tmp_path):
    source = open_folder(make_folder(tmp_path / "data"))
    stores = [open_store(source, image_size=size, cache_dir=tmp_path) for size in (8, 16)]
    assert stores[0].path != stores[1].path
    assert stores[1].images["train"].shape == (6, 3, 16, 16)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_file_is_named_and_left_out_and_its_neighbours_stay(tmp_path, content):
    top = make_folder(tmp_path / "data", num=60)
    whole = pack(top, tmp_path / "whole")
    (top / "a" / "004.png").write_bytes(content)
    store = pack(top, tmp_path / "broken")
    kept = np.delete(np.arange(120), 2)
    assert [name.split(" ")[0] for name in store.manifest.broken] == ["a/004.png"]
    assert np.array_equal(store.images["train"], whole.images["train"][kept])
    assert np.array_equal(store.labels["train"], whole.labels["train"][kept])


def test_a_file_cut_short_is_broken(tmp_path):
    top = make_folder(tmp_path / "data", num=60)
    path = top / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert pack(top, tmp_path).manifest.broken[0].startswith("b/001.png (")


def test_more_than_one_broken_file_in_a_hundred_is_refused_and_leaves_nothing(tmp_path):
    top = make_folder(tmp_path / "data")
    (top / "a" / "000.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"data: 1 of 6 files cannot be decoded, more than 1%; first: a/000\.png"
    ) as caught:
        pack(top, tmp_path)
    assert caught.value.exit_code == 3
    assert [path for path in (tmp_path / "packed").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["train.images.npy", "train.labels.npy", "manifest.json"])
@pytest.mark.parametrize("kept", [0, 40, -1], ids=["emptied", "cut early", "cut by a byte"])
def test_a_truncated_file_of_the_store_is_rebuilt(tmp_path, name, kept):
    top = make_folder(tmp_path / "data")
    fingerprint = pack(top, tmp_path).manifest.fingerprint
    path = only_store(tmp_path) / name
    path.write_bytes(path.read_bytes()[:kept])
    store = pack(top, tmp_path)
    assert store.manifest.fingerprint == fingerprint
    assert store.images["train"].shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"counts": {"train": 5}},
        {"counts": {"test": 6}},
        {"image_size": 16},
        {"x": 1},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_rebuilt(tmp_path, change):
    top = make_folder(tmp_path / "data")
    manifest = pack(top, tmp_path).manifest
    path = only_store(tmp_path) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert pack(top, tmp_path).manifest == manifest


def test_a_missing_array_is_rebuilt(tmp_path):
    top = make_folder(tmp_path / "data")
    pack(top, tmp_path)
    (only_store(tmp_path) / "train.labels.npy").unlink()
    assert len(pack(top, tmp_path).labels["train"]) == 6


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
    top = make_folder(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the cache .*file.*SMALLVIT_CACHE_DIR"):
        pack(top, tmp_path / "file")
