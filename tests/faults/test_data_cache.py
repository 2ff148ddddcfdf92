"""Packing and unpacking that is killed, or meets a disk that is full or cannot be written."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.data.files.own import open_path
from smallvit.data.files.store import open_store, verify_store
from smallvit.data.files.unpack import unpack

# Stops for good in the middle of its work, and says so.
KILLED = """
import signal, sys
from dataclasses import replace
from pathlib import Path
from smallvit.data.files.own import open_path
from smallvit.data.files.store import open_store
from smallvit.data.files.unpack import unpack

def stop(*_):
    print("half", flush=True)
    signal.pause()

what, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if what == "unpack":
    unpack(source, target, progress=stop)

def list_images():
    listing = found.list_images()
    split = listing.splits["train"]
    read = lambda i: stop() if i == 50 else split.read(i)
    return replace(listing, splits={"train": replace(split, read=read)})

found = open_path(source)
open_store(replace(found, list_images=list_images), image_size=16, cache_dir=target)
"""

# A disk of 100 kB, which then grows, and then can only be read.
SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
from smallvit.cli.app import main

disk, photos, others = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def mount(options):
    subprocess.run(["mount", "-o", options, "-t", "tmpfs", "tmpfs", str(disk)], check=True)
def get(path):
    code = main(["data", "get", path])
    left = sorted(p.name for p in disk.rglob("*.npy"))
    print(json.dumps([code, left]), flush=True)
mount("size=100k")
os.environ["SMALLVIT_CACHE_DIR"] = str(disk)
get(photos)
mount("remount,size=20m")
get(photos)
mount("remount,ro")
get(photos)
get(others)
"""
ARRAYS = ["train.content.npy", "train.hashes.npy", "train.images.npy", "train.labels.npy"]


def make_photos(folder: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for i in range(200):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 0)


def kill_halfway(*words: object) -> None:
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()


def test_packing_that_was_killed_is_repaired_by_the_next_start(photos, tmp_path):
    cache, source = tmp_path / "cache", open_path(photos)
    kill_halfway("pack", photos, cache)
    (half,) = (cache / "packed").glob(".packing-*")
    assert [path.name for path in half.iterdir()] == ["train.images.npy"]
    assert not list(cache.rglob("manifest.json"))
    store = open_store(source, image_size=16, cache_dir=cache)  # its lock went with the process
    assert store.manifest.counts == {"train": 200}
    assert verify_store(store) == []
    undisturbed = open_store(source, image_size=16, cache_dir=tmp_path / "another")
    assert store.manifest == undisturbed.manifest
    assert not half.exists()


def test_unpacking_that_was_killed_is_repaired_by_the_next_start(tmp_path):
    content = {f"set/{i}.bin": bytes([i]) * 3_000_000 for i in range(3)}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    target = tmp_path / "data" / "set"
    kill_halfway("unpack", tmp_path / "set.zip", target)
    assert [path.name for path in target.parent.iterdir()] == [".set.partial"]
    unpack(tmp_path / "set.zip", target)
    assert [path.name for path in target.parent.iterdir()] == ["set"]
    assert {f"set/{path.name}": path.read_bytes() for path in target.iterdir()} == content


@pytest.mark.slow
def test_a_cache_that_is_full_or_cannot_be_written_is_one_line_and_loses_nothing(photos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    others = make_photos(tmp_path / "others", 1)
    command = ["unshare", "-rm", sys.executable, "-c", SMALL_DISK, disk, photos, others]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    full, grown, packed, refused = results
    assert full == [3, []]
    assert grown == packed == [0, ARRAYS]
    assert refused == [3, ARRAYS]
    lines = [line for line in done.stderr.splitlines() if line.startswith("smallvit: ")]
    for line, why in zip(lines, ("No space left on device", "Read-only file system"), strict=True):
        assert line.startswith(f"smallvit: cannot write the cache {disk} ({why}): set SMALLVIT_CAC")
