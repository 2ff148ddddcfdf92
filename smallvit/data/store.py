"""The packed store: each split decoded once into a uint8 array, kept in the cache.

A store is a folder ``<cache>/packed/<name>-<key>/`` with ``<split>.images.npy`` (N, 3, H, W),
``<split>.labels.npy`` (N,) and ``manifest.json``. It is written in a temporary folder and renamed
when whole, under a file lock, and one whose manifest does not fit is never used.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from smallvit.core.errors import DataError
from smallvit.data.sources import Source, SourceSplit, to_rgb

STORE_VERSION = 1
MAX_BROKEN = 0.01  # fraction of the files
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds.

    Attributes:
        version: Format of the store.
        name: Dataset.
        class_names: In the order of the labels.
        image_size: Side of the images, in pixels.
        counts: Images a split.
        broken: Files that could not be decoded and were left out.
        fingerprint: SHA-256 of the class names, labels and pixels of all splits.
    """

    version: int
    name: str
    class_names: tuple[str, ...]
    image_size: int
    counts: dict[str, int]
    broken: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class PackedStore:
    """An opened store: memory-mapped arrays by split.

    Attributes:
        path: Its folder.
        manifest: What it holds.
        images: uint8 (N, 3, H, W) by split.
        labels: int64 (N,) by split.
    """

    path: Path
    manifest: Manifest
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def open_store(
    source: Source, *, image_size: int, cache_dir: Path, progress: Progress | None = None
) -> PackedStore:
    """Open the packed store of a source, packing it first where there is none.

    Args:
        source: Where the images lie.
        image_size: Side that they are packed at, in pixels.
        cache_dir: Folder for all stores.
        progress: Called now and then while packing.

    Raises:
        DataError: If more than 1 % of the files cannot be decoded, or the cache cannot be written.
    """
    key = hashlib.sha256(f"{STORE_VERSION}/{image_size}/{source.key}".encode()).hexdigest()[:16]
    folder = cache_dir / "packed" / f"{source.name}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            store = _read(folder)
            if store is None:
                _pack(source, image_size, folder, progress or (lambda done, total: None))
                store = _read(folder)
    except OSError as error:
        raise DataError(
            f"cannot write the cache {cache_dir} ({error.strerror}): set SMALLVIT_CACHE_DIR to a "
            "folder with room"
        ) from error
    assert store is not None
    return store


def _read(folder: Path) -> PackedStore | None:
    try:
        plain = json.loads((folder / "manifest.json").read_text())
        plain |= {key: tuple(plain[key]) for key in ("class_names", "broken")}
        manifest = Manifest(**plain)
        # Copy-on-write maps: torch wants writable memory, and nothing here writes.
        images = {
            split: np.load(folder / f"{split}.images.npy", mmap_mode="c")
            for split in manifest.counts
        }
        labels = {split: np.load(folder / f"{split}.labels.npy") for split in manifest.counts}
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None
    size = manifest.image_size
    whole = manifest.version == STORE_VERSION and all(
        images[split].shape == (count, 3, size, size) and len(labels[split]) == count
        for split, count in manifest.counts.items()
    )
    if not whole:
        return None
    return PackedStore(path=folder, manifest=manifest, images=images, labels=labels)


def _pack(source: Source, image_size: int, folder: Path, progress: Progress) -> None:
    total = sum(len(split.names) for split in source.splits.values())
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".packing-"))
    digest = hashlib.sha256(json.dumps(source.class_names).encode())
    counts, broken, done = {}, [], 0
    try:
        for name, split in source.splits.items():
            start = done
            images, kept, bad = _decode(
                split, image_size, lambda n, start=start: progress(start + n, total)
            )
            done += len(split.names)
            broken += bad
            if len(broken) > MAX_BROKEN * total:
                raise DataError(
                    f"{source.name}: {len(broken)} of {total} files cannot be decoded, more than "
                    f"{MAX_BROKEN:.0%}; first: {', '.join(broken[:3])}: mend or remove them"
                )
            labels = split.labels[kept]
            digest.update(labels.tobytes())
            digest.update(images.tobytes())
            np.save(partial / f"{name}.images.npy", images)
            np.save(partial / f"{name}.labels.npy", labels)
            counts[name] = len(labels)
        manifest = Manifest(
            version=STORE_VERSION,
            name=source.name,
            class_names=source.class_names,
            image_size=image_size,
            counts=counts,
            broken=tuple(broken),
            fingerprint=digest.hexdigest(),
        )
        (partial / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(
    split: SourceSplit, image_size: int, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode in threads (PIL releases the GIL); return images, kept indices and broken names."""
    count = len(split.names)
    images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)

    def decode(i: int) -> str | None:
        try:
            images[i] = to_rgb(split.read(i), image_size)
        except Exception as error:  # PIL raises nearly anything on a broken file
            return f"{split.names[i]} ({type(error).__name__})"
        return None

    broken: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        for i, failure in enumerate(pool.map(decode, range(count))):
            if failure is not None:
                broken[i] = failure
            if i % 512 == 0 or i == count - 1:
                progress(i + 1)
    kept = np.asarray([i for i in range(count) if i not in broken], dtype=np.int64)
    return (images[kept] if broken else images), kept, list(broken.values())
