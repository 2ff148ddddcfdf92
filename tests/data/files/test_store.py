import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import DataError
from smallvit.data.files.sources import Listing, Source, SourceSplit
from smallvit.data.files.store import (
    ImageFacts,
    PackedStore,
    find_overlaps,
    hash_images,
    open_store,
    verify_store,
)

ARRAYS = ("train.images.npy", "train.labels.npy", "train.hashes.npy")
WORKER = """
import os, sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from smallvit.data.files.sources import Listing, Source, SourceSplit
from smallvit.data.files.store import open_store

def read(i):
    time.sleep(0.005)
    if i == int(sys.argv[2]):
        os._exit(9)
    return Image.new("RGB", (8, 8), (i, 0, 0))

def list_images():
    print("packed", flush=True)
    split = SourceSplit(names=list(map(str, range(200))), labels=np.arange(200) % 2, read=read)
    return Listing(class_names=("a", "b"), splits={"train": split})

source = Source(name="slow", key="k", hflip=True, image_size=8, list_images=list_images)
print(open_store(source, image_size=8, cache_dir=Path(sys.argv[1])).manifest.fingerprint)
"""


def noise(num: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def make_split(
    pixels: np.ndarray, labels: list[int] | None = None, *, broken: tuple[int, ...] = ()
) -> SourceSplit:
    def read(i: int) -> Image.Image:
        if i in broken:
            raise OSError("cut short")
        return Image.fromarray(pixels[i])

    num = len(pixels)
    return SourceSplit(
        names=[f"{i:03}.png" for i in range(num)],
        labels=np.asarray([i % 2 for i in range(num)] if labels is None else labels, dtype=int),
        read=read,
    )


def make_source(
    *, name: str = "data", key: str = "k", classes: tuple[str, ...] = ("a", "b"), **splits
) -> Source:
    listing = Listing(class_names=classes, splits=splits)
    return Source(name=name, key=key, hflip=True, image_size=8, list_images=lambda: listing)


def pack(cache: Path, source: Source | None = None, **options) -> PackedStore:
    source = source or make_source(train=make_split(noise(6)))
    return open_store(source, image_size=8, cache_dir=cache, **options)


def only_store(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "packed").iterdir() if path.is_dir())
    return folder


def start_worker(cache: Path, crash_at: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(cache), str(crash_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_packed_pixels_and_labels_are_those_of_the_source(tmp_path):
    pixels = noise(6)
    store = pack(tmp_path, make_source(train=make_split(pixels, [0, 0, 0, 1, 1, 1])))
    assert np.array_equal(store.images["train"], pixels.transpose(0, 3, 1, 2))
    assert store.facts["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert store.manifest.counts == {"train": 6}


def test_order_is_kept_over_many_chunks(tmp_path):
    pixels = noise(333)
    store = pack(tmp_path, make_source(train=make_split(pixels)))
    assert np.array_equal(store.images["train"], pixels.transpose(0, 3, 1, 2))


def test_a_store_is_packed_once_with_progress_to_the_end(tmp_path):
    source, calls = make_source(train=make_split(noise(1100)), test=make_split(noise(7))), []
    for _ in range(2):
        pack(tmp_path, source, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(512, 1107), (1024, 1107), (1100, 1107), (1107, 1107)]


def test_images_are_listed_only_to_be_packed(tmp_path):
    pack(tmp_path)

    def fail() -> Listing:
        raise AssertionError

    source = Source(name="data", key="k", hflip=True, image_size=8, list_images=fail)
    assert len(pack(tmp_path, source).facts["train"].labels) == 6


def test_fingerprint_is_the_same_wherever_and_whenever_it_is_packed(tmp_path):
    first = pack(tmp_path / "one").manifest.fingerprint
    assert pack(tmp_path / "one").manifest.fingerprint == first
    assert pack(tmp_path / "two").manifest.fingerprint == first


@pytest.mark.parametrize(
    "source",
    [
        make_source(train=make_split(noise(6, seed=1))),
        make_source(train=make_split(noise(6), [0, 1, 0, 1, 1, 0])),
        make_source(train=make_split(noise(6)), classes=("a", "c")),
        make_source(train=make_split(noise(5))),
    ],
    ids=["pixels", "labels", "class names", "count"],
)
def test_fingerprint_tells_contents_apart(tmp_path, source):
    first = pack(tmp_path / "one").manifest.fingerprint
    assert pack(tmp_path / "two", source).manifest.fingerprint != first


def test_another_key_or_image_size_is_another_store(tmp_path):
    split = make_split(noise(6))
    source, other = make_source(train=split), make_source(train=split, key="other")
    stores = [
        open_store(source, image_size=8, cache_dir=tmp_path),
        open_store(other, image_size=8, cache_dir=tmp_path),
        open_store(source, image_size=16, cache_dir=tmp_path),
    ]
    assert len({store.path for store in stores}) == 3
    assert stores[2].images["train"].shape == (6, 3, 16, 16)


@pytest.mark.parametrize(
    "name",
    [
        "hf:owner/name",
        "../up",
        "..",
        "",
        ".hidden",
        "a b",
        "a\nb",
        "root\ufffd",
        os.fsdecode(b"root\xff"),
        "x" * 300,
    ],
)
def test_any_name_of_a_dataset_makes_a_folder_in_the_cache(tmp_path, name):
    store = pack(tmp_path, make_source(name=name, train=make_split(noise(6))))
    assert store.path.parent == tmp_path / "packed"
    assert re.fullmatch(r"[\w-][\w.-]*", store.path.name, re.ASCII)
    assert store.manifest.name == name


def test_hashes_are_those_of_the_pixels(tmp_path):
    pixels = noise(6)
    pixels[4] = pixels[1]
    store = pack(tmp_path, make_source(train=make_split(pixels)))
    hashes = store.facts["train"].hashes
    assert np.array_equal(hashes, hash_images(store.images["train"]))
    assert hashes[4] == hashes[1]
    assert len(set(hashes.tolist())) == 5


def test_broken_images_are_named_and_leave_no_row(tmp_path):
    pixels, broken = noise(400), (0, 63, 64, 399)
    store = pack(tmp_path, make_source(train=make_split(pixels, broken=broken)))
    kept = np.delete(np.arange(400), broken)
    assert store.manifest.broken == tuple(f"{i:03}.png (cut short)" for i in broken)
    assert np.array_equal(store.images["train"], pixels[kept].transpose(0, 3, 1, 2))
    assert store.facts["train"].labels.tolist() == (kept % 2).tolist()
    assert verify_store(store) == []


@pytest.mark.parametrize("broken", [(3,), tuple(range(6))], ids=["one", "all"])
def test_one_broken_file_of_very_few_is_refused_and_leaves_nothing(tmp_path, broken):
    source = make_source(train=make_split(noise(6), broken=broken))
    with pytest.raises(
        DataError,
        match=rf"data: {len(broken)} of 6 files cannot be decoded, and none may be left out",
    ) as caught:
        pack(tmp_path, source)
    assert caught.value.exit_code == 3
    assert [path for path in (tmp_path / "packed").iterdir() if path.is_dir()] == []


def test_a_split_without_a_whole_image_is_refused(tmp_path):
    test = make_split(noise(2), broken=(0, 1))
    source = make_source(train=make_split(noise(200)), test=test)
    with pytest.raises(DataError, match=r"no image of a in test can be decoded; first: 000\.png"):
        pack(tmp_path, source)


def test_memory_while_packing_is_that_of_a_few_images(tmp_path):
    image = Image.new("RGB", (64, 64))
    split = SourceSplit(names=[""] * 3000, labels=np.arange(3000) % 2, read=lambda _: image.copy())
    tracemalloc.start()
    store = open_store(make_source(train=split), image_size=64, cache_dir=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.images["train"].nbytes > 36e6
    assert peak < 9e6


@pytest.mark.parametrize("threads", [1, 2, 5, 16, 64])
def test_images_in_work_are_near_each_other_however_many_threads_there_are(
    tmp_path, monkeypatch, threads
):
    # Readers of tables rely on it: they keep the last 64 rows or more.
    monkeypatch.setattr("smallvit.data.files.store.cpu_count", lambda: threads)
    lock, newest, furthest = threading.Lock(), 0, 0

    def read(i: int) -> Image.Image:
        nonlocal newest, furthest
        with lock:
            newest = max(newest, i)
            furthest = max(furthest, newest - i)
        if i % 7 == 0:
            time.sleep(0.002)
        return Image.new("RGB", (8, 8))

    split = SourceSplit(names=[""] * 500, labels=np.arange(500) % 2, read=read)
    pack(tmp_path, make_source(train=split))
    assert furthest < 48


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2, 0, 5, 1], ("a", "b"), "2 labels of train are outside 0 to 1 .*002.png has 2"),
        ([0, 1, 1, -1, 0, 1], ("a", "b"), "1 labels of train are outside 0 to 1 .*003.png has -1"),
        ([-1, -1, 0, -1, -1, -1], (), "1 labels of train are outside -1 to -1 .*002.png has 0"),
    ],
)
def test_a_label_out_of_range_is_refused_before_decoding(tmp_path, labels, classes, message):
    split = make_split(noise(6), labels, broken=tuple(range(6)))
    with pytest.raises(DataError, match=message):
        pack(tmp_path, make_source(train=split, classes=classes))


def test_images_without_labels_are_packed(tmp_path):
    store = pack(tmp_path, make_source(train=make_split(noise(6), [-1] * 6), classes=()))
    assert store.manifest.class_names == ()
    assert store.facts["train"].labels.tolist() == [-1] * 6


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 6, "test": 0}, "data: no images in test: add some"),
        ({"train": 0}, "data: no images in train: add some"),
    ],
    ids=str,
)
def test_a_listing_without_images_is_refused(tmp_path, splits, message):
    made: dict[str, Any] = {name: make_split(noise(num)) for name, num in splits.items()}
    source = make_source(**made)
    with pytest.raises(DataError, match=message):
        pack(tmp_path, source)


def test_images_that_cannot_be_listed_are_not_blamed_on_the_cache(tmp_path):
    def list_images() -> Listing:
        raise FileNotFoundError(2, "No such file or directory", "gone.csv")

    source = Source(name="data", key="k", hflip=True, image_size=8, list_images=list_images)
    with pytest.raises(DataError, match=r"data: cannot list the images \(No such.*: gone\.csv\)"):
        pack(tmp_path, source)


@pytest.mark.parametrize("name", [*ARRAYS, "manifest.json"])
@pytest.mark.parametrize("kept", [0, 40, -1], ids=["emptied", "cut early", "cut by a byte"])
def test_a_truncated_file_of_the_store_is_rebuilt(tmp_path, caplog, name, kept):
    fingerprint = pack(tmp_path).manifest.fingerprint
    path = only_store(tmp_path) / name
    path.write_bytes(path.read_bytes()[:kept])
    store = pack(tmp_path)
    assert store.manifest.fingerprint == fingerprint
    assert verify_store(store) == []
    assert "making it anew" in caplog.text


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: np.save(path, np.load(path)[:-1]),
        lambda path: np.save(path, np.load(path).astype(np.float32)),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    ],
    ids=["missing", "a row short", "another type", "another format", "a bit flipped"],
)
def test_a_damaged_array_is_rebuilt(tmp_path, caplog, name, damage: Callable[[Path], object]):
    manifest = pack(tmp_path).manifest
    damage(only_store(tmp_path) / name)
    store = pack(tmp_path)
    assert store.manifest == manifest
    assert verify_store(store) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"counts": {"train": 5}},
        {"counts": {"test": 6}},
        {"counts": {"train": 0}},
        {"counts": 6},
        {"image_size": 16},
        {"class_names": ["a", "c"]},
        {"fingerprint": "0"},
        {"overlaps": [{"split": "train"}]},
        {"x": 1},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_rebuilt(tmp_path, change):
    manifest = pack(tmp_path).manifest
    path = only_store(tmp_path) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert pack(tmp_path).manifest == manifest


def test_a_whole_store_is_opened_without_a_warning(tmp_path, caplog):
    manifest = pack(
        tmp_path, make_source(train=make_split(np.repeat(noise(3), 2, axis=0)))
    ).manifest
    assert manifest.overlaps
    assert pack(tmp_path).manifest == manifest
    assert caplog.records == []


def test_verifying_finds_damage_that_opening_does_not_sample(tmp_path):
    calls = []
    pack(tmp_path, make_source(train=make_split(noise(2000))))
    path = only_store(tmp_path) / "train.images.npy"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 3 * 64 * 2)  # the last image but one
        file.write(b"damage")
    store = pack(tmp_path)
    (problem,) = verify_store(store, lambda done, total: calls.append((done, total)))
    assert problem.endswith(
        "train.images.npy: 1 of 2000 images differ from their hashes, first: image 1998"
    )
    assert calls[-1] == (2000, 2000)


def test_verifying_finds_altered_labels(tmp_path):
    store = pack(tmp_path)
    store.facts["train"].labels[0] = 1
    assert [problem.split(": ")[1] for problem in verify_store(store)] == [
        "labels or hashes do not fit the manifest's fingerprint"
    ]


def test_two_processes_pack_once(tmp_path):
    workers = [start_worker(tmp_path) for _ in range(2)]
    lines = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(len(words) for words in lines) == [1, 2]  # "packed" is said by one
    assert lines[0][-1] == lines[1][-1]


def test_what_a_killed_packer_left_is_removed_by_the_next(tmp_path):
    killed = start_worker(tmp_path, crash_at=150)
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    (left,) = (tmp_path / "packed").glob(".packing-*")
    other = left.with_name(".packing-of-another")
    other.mkdir()
    worker = start_worker(tmp_path)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert list((tmp_path / "packed").glob(".packing-*")) == [other]
    other.rmdir()
    assert only_store(tmp_path).name.startswith("slow-")


def test_a_cache_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the cache .*file.*SMALLVIT_CACHE_DIR"):
        pack(tmp_path / "file")


def test_a_whole_store_is_opened_in_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    manifest = pack(tmp_path).manifest

    def fail(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("smallvit.data.files.store.FileLock", fail)
    store = pack(tmp_path)
    assert (store.manifest, verify_store(store)) == (manifest, [])
    (only_store(tmp_path) / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"cannot write the cache .* \(Read-only file system\)"):
        pack(tmp_path)


def test_a_full_disk_is_explained(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DataError, match=r"cannot write .* \(No space left on device\): set SMALL"):
        pack(tmp_path)
    assert [path for path in (tmp_path / "packed").iterdir() if path.is_dir()] == []


def alike(labels: list[int], hashes: list[int]) -> ImageFacts:
    each = np.asarray(hashes, dtype=np.uint64)
    return ImageFacts(labels=np.asarray(labels), hashes=each, contents=each)


def test_repeats_are_found_within_and_across_splits():
    facts = {
        "train": alike([0, 0, 0, 1, 1], [5, 7, 5, 9, 5]),
        "test": alike([1, 0, 1, 0], [9, 1, 5, 99]),
    }
    names = {"train": [f"train/{i}" for i in range(5)], "test": [f"test/{i}" for i in range(4)]}
    within, across = find_overlaps(facts, names)
    assert (within.split, within.other, within.count, within.conflicting) == (
        "train",
        "train",
        2,
        1,
    )
    assert within.examples == (("train/4", "train/0"), ("train/2", "train/0"))
    assert (across.split, across.other, across.count, across.conflicting) == (
        "test",
        "train",
        2,
        1,
    )
    assert across.examples == (("test/2", "train/0"), ("test/0", "train/3"))


def test_splits_without_repeats_have_no_overlap():
    facts = {name: alike([0, 0], [i, 10 + i]) for i, name in enumerate(("train", "val"))}
    assert find_overlaps(facts, {name: ["x", "y"] for name in facts}) == ()


def test_the_manifest_keeps_three_examples_of_whole_images(tmp_path):
    pixels = noise(200)
    train, test = make_split(pixels, broken=(1,)), make_split(pixels[:20])
    store = pack(tmp_path, make_source(train=train, test=test))
    (overlap,) = pack(tmp_path).manifest.overlaps
    assert overlap == store.manifest.overlaps[0]
    assert (overlap.count, overlap.conflicting) == (19, 0)
    assert overlap.examples == tuple((f"{i:03}.png",) * 2 for i in (0, 2, 3))


def test_a_removed_store_is_packed_again_without_a_warning(tmp_path, caplog):
    shutil.rmtree(pack(tmp_path).path)
    assert len(pack(tmp_path).facts["train"].labels) == 6
    assert caplog.records == []
