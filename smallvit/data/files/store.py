"""The packed store: each split decoded once into a uint8 array, kept in the cache.

A store is a folder ``<cache>/packed/<name>-<key>/`` with ``<split>.images.npy`` (N, 3, H, W),
``<split>.labels.npy`` (N,), ``<split>.hashes.npy`` and ``<split>.content.npy`` (N,), and
``manifest.json``. It is written in a temporary folder, synced and renamed when whole, under a file
lock. One whose manifest, labels or sampled pixels do not fit is packed anew.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock
from joblib import cpu_count

from smallvit.core.errors import DataError, explained, reason
from smallvit.data.files.class_lists import check_listing
from smallvit.data.files.content import PackedImage, pack_image
from smallvit.data.files.grey import (
    GreyExtent,
    GreyScale,
    GreySetting,
    choose_range,
    describe_scale,
)
from smallvit.data.files.sources import Listing, Source, SourceSplit

logger = logging.getLogger("smallvit")

STORE_VERSION = 3
MAX_BROKEN = 0.01  # fraction of the files
FEW_BROKEN = 3  # files that may be broken of a small set as well
MAX_BROKEN_OF_FEW = 0.1  # unless they are more than this fraction of it
CHUNK = 8  # images a task: one a task takes a fifth longer (64 px JPEG), 64 are no faster
MAX_AHEAD = 48  # images in work at a time; readers of tables keep a little more than that at hand
MAX_THREADS = 16
PROGRESS_EVERY = 512
NUM_SAMPLED = 256  # images of a split that are hashed again whenever a store is opened
NUM_EXAMPLES = 3
CACHE_REMEDY = "set SMALLVIT_CACHE_DIR to a folder with room"
# Arrays beside the images: names of their files, and types.
_FACTS = {"labels": "int64", "hashes": "uint64", "content": "uint64"}
Progress = Callable[[int, int], None]  # (images done, images in all)
# What reading something stored raises where it is not whole.
_NOT_WHOLE = (OSError, EOFError, ValueError, TypeError, LookupError)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Images of a split whose packed pixels another image has as well.

    Attributes:
        split: Where they are counted.
        other: Where the same pixels are; ``split`` itself for images that repeat an earlier one.
        count: How many.
        conflicting: Those of them whose label is not that of the first such image in ``other``.
        examples: Names of the first few, each with that of its twin in ``other``; conflicting
            ones come first.
    """

    split: str
    other: str
    count: int
    conflicting: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds.

    Attributes:
        version: Format of the store.
        name: Dataset.
        class_names: In the order of the labels; empty where images carry no labels.
        image_size: Side of the images, in pixels.
        counts: Images a split.
        broken: Files that could not be decoded and were left out.
        overlaps: Repeated images within each split and across splits, where there are any.
        fingerprint: SHA-256 of the class names and of the labels and image hashes of all splits;
            the hashes stand for the pixels, so that it can be checked without reading those.
        unordered: The same of the images of each split in whatever order they are listed.
        grey: How grey values of more than 8 bits became 8 bits; ``None`` where there are none.
    """

    version: int
    name: str
    class_names: tuple[str, ...]
    image_size: int
    counts: dict[str, int]
    broken: tuple[str, ...]
    overlaps: tuple[Overlap, ...]
    fingerprint: str
    unordered: str
    grey: GreyScale | None


class ImageFacts(NamedTuple):
    """What is known of the images of a split, in their order.

    Attributes:
        labels: int64 (N,), all -1 where images carry no labels.
        hashes: uint64 (N,), a hash of each image's packed pixels.
        contents: uint64 (N,), the content hash of each image.
    """

    labels: np.ndarray
    hashes: np.ndarray
    contents: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PackedStore:
    """An opened store; the images are memory-mapped.

    Attributes:
        path: Its folder.
        manifest: What it holds.
        images: uint8 (N, 3, H, W) by split.
        facts: Of these images, by split.
    """

    path: Path
    manifest: Manifest
    images: dict[str, np.ndarray]
    facts: dict[str, ImageFacts]


def open_store(
    source: Source,
    *,
    image_size: int,
    cache_dir: Path,
    grey_range: GreySetting = "auto",
    progress: Progress | None = None,
) -> PackedStore:
    """Open the packed store of a source, packing it first where there is none that is whole.

    Args:
        source: Where the images lie.
        image_size: Side that they are packed at, in pixels.
        cache_dir: Folder for all stores.
        grey_range: Grey values of more than 8 bits that become 0 and 255, or who decides them.
        progress: Called now and then while packing, and when all images are packed.

    Raises:
        DataError: If too many files cannot be decoded, a label is out of range, a split or a class
            has no images, grey values fit no usual range, or the cache cannot be written.
    """
    parts = f"{STORE_VERSION}/{image_size}/{grey_range}/{source.key}"
    key = hashlib.sha256(parts.encode()).hexdigest()[:16]
    folder = cache_dir / "packed" / f"{file_stem(source.name)}-{key}"
    with suppress(*_NOT_WHOLE):
        return _read(folder)  # without the lock, which a cache that is read-only cannot hold
    with cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            with anew_if_broken(folder):
                return _read(folder)
            _pack(source, image_size, grey_range, folder, progress or (lambda done, total: None))
            return _read(folder)


def file_stem(name: str) -> str:
    """Turn a dataset's name into one that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:80] or "data"


def cache_errors(cache_dir: Path) -> AbstractContextManager[None]:
    """Explain a cache that cannot be written: a ``DataError`` in place of any ``OSError``."""
    return explained(
        lambda e: f"cannot write the cache {cache_dir} ({e.strerror or e}): {CACHE_REMEDY}"
    )


@contextmanager
def stored_if_possible(what: str) -> Iterator[None]:
    """Go on without storing something that can be computed anew; say so and why.

    Args:
        what: It, for the message.
    """
    try:
        yield
    except (OSError, DataError) as error:
        logger.info("%s is not stored (%s)", what, getattr(error, "strerror", None) or error)


@contextmanager
def anew_if_broken(path: Path) -> Iterator[None]:
    """Go on where what is stored at a path is broken, which is said, or where there is nothing."""
    try:
        yield
    except _NOT_WHOLE as error:
        if path.exists():
            logger.warning("%s in the cache is broken (%s): making it anew", path, error)


def hash_images(images: np.ndarray) -> np.ndarray:
    """Hash each image of an array to 8 bytes; images of the same pixels have the same hash."""
    digests = (hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(bytearray().join(digests), dtype=np.uint64)


def verify_store(store: PackedStore, progress: Progress | None = None) -> list[str]:
    """Read the whole store again and compare it with its hashes.

    Args:
        store: What to check.
        progress: Called now and then.

    Returns:
        One line a problem; none for a store that is whole.
    """
    problems = []
    total, done = sum(store.manifest.counts.values()), 0
    for name, images in store.images.items():
        wrong: list[int] = []
        for start in range(0, len(images), PROGRESS_EVERY):
            found = hash_images(images[start : start + PROGRESS_EVERY])
            wanted = store.facts[name].hashes[start : start + PROGRESS_EVERY]
            wrong += (start + np.flatnonzero(found != wanted)).tolist()
            done += len(found)
            if progress is not None:
                progress(done, total)
        if wrong:
            problems.append(
                f"{store.path / f'{name}.images.npy'}: {len(wrong)} of {len(images)} images differ "
                f"from their hashes, first: image {wrong[0]}"
            )
    if not _fits(store.manifest, store.facts):
        problems.append(f"{store.path}: labels or hashes do not fit the manifest's fingerprint")
    return problems


def find_overlaps(
    facts: Mapping[str, ImageFacts], names: Mapping[str, Sequence[str]]
) -> tuple[Overlap, ...]:
    """Find images that occur more than once, within each split and across each pair of splits.

    Args:
        facts: Of the images, by split.
        names: Image names by split, for the examples.

    Returns:
        One entry for each pair of splits that has any, the later split compared with the earlier
        in the order train, val, test.
    """
    splits = [name for name in ("train", "val", "test") if name in facts]
    overlaps = []
    for number, split in enumerate(splits):
        for other in splits[: number + 1]:
            hashes = facts[split].hashes
            values, first = np.unique(facts[other].hashes, return_index=True)
            nearest = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
            twin = first[nearest]
            same = values[nearest] == hashes
            if split == other:
                same &= twin != np.arange(len(twin))
            found = np.flatnonzero(same)
            if len(found) == 0:
                continue
            conflicting = facts[split].labels[found] != facts[other].labels[twin[found]]
            shown = found[np.argsort(~conflicting, kind="stable")][:NUM_EXAMPLES]
            overlaps.append(
                Overlap(
                    split=split,
                    other=other,
                    count=len(found),
                    conflicting=int(conflicting.sum()),
                    examples=tuple(
                        (names[split][int(i)], names[other][int(twin[i])]) for i in shown
                    ),
                )
            )
    return tuple(overlaps)


def _read(folder: Path) -> PackedStore:
    """Open a store; any error says that it is not whole."""
    text = (folder / "manifest.json").read_text()
    plain = json.loads(text, object_hook=lambda entry: {k: _tupled(v) for k, v in entry.items()})
    if plain["version"] != STORE_VERSION:
        raise ValueError(f"version {plain['version']}, not {STORE_VERSION}")
    plain["overlaps"] = tuple(Overlap(**entry) for entry in plain["overlaps"])
    plain["grey"] = None if plain["grey"] is None else GreyScale(**plain["grey"])
    manifest = Manifest(**plain)
    side = manifest.image_size
    images, facts = {}, {}
    for split, count in manifest.counts.items():
        # A copy-on-write map: torch wants writable memory, and nothing here writes.
        images[split] = _map(folder / f"{split}.images.npy", "uint8", (count, 3, side, side))
        facts[split] = ImageFacts(
            *(
                np.array(_map(folder / f"{split}.{kind}.npy", dtype, (count,)))
                for kind, dtype in _FACTS.items()
            )
        )
        sampled = np.linspace(0, count - 1, num=min(NUM_SAMPLED, count)).astype(int)
        differ = hash_images(images[split][sampled]) != facts[split].hashes[sampled]
        if differ.any():
            raise ValueError(
                f"{differ.sum()} of {len(sampled)} {split} images differ from their hashes"
            )
    if not _fits(manifest, facts):
        raise ValueError("labels or hashes do not fit the manifest's fingerprint")
    return PackedStore(path=folder, manifest=manifest, images=images, facts=facts)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    # Not np.load, which takes a damaged header for a zip file or a pickle.
    array = np.lib.format.open_memmap(path, mode="c")
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}, not {dtype} {shape}")
    return array


def content_order(contents: np.ndarray, labels: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the order of images by content, then label, then packed pixels.

    Images that are alike in all three stay as they come: nothing tells them apart.
    """
    return np.lexsort((hashes, labels, contents))


def _fingerprints(class_names: Sequence[str], facts: Mapping[str, ImageFacts]) -> tuple[str, str]:
    """Return the hash of the images of each split as they are listed, and in whatever order."""
    listed = hashlib.sha256(json.dumps(list(class_names)).encode())
    unordered = listed.copy()
    for split, (labels, hashes, _) in facts.items():
        listed.update(f"{split}/{len(labels)}/".encode())
        for array in (labels, hashes):
            listed.update(array.data)
    for split, (labels, hashes, contents) in sorted(facts.items()):
        order = content_order(contents, labels, hashes)
        unordered.update(f"{split}/{len(order)}/".encode())
        for array in (contents, labels, hashes):
            unordered.update(array[order].data)
    return listed.hexdigest(), unordered.hexdigest()


def _fits(manifest: Manifest, facts: Mapping[str, ImageFacts]) -> bool:
    """Tell whether labels, hashes and content hashes are those of a manifest."""
    known = manifest.fingerprint, manifest.unordered
    return _fingerprints(manifest.class_names, facts) == known


def _pack(
    source: Source, image_size: int, grey_range: GreySetting, folder: Path, progress: Progress
) -> None:
    with explained(
        lambda error: (
            f"{source.name}: cannot list the images ({error.strerror or error}: "
            f"{error.filename}): check that they are there and readable"
        )
    ):
        listing = source.list_images()
    check_listing(source.name, listing)
    total = sum(len(split.names) for split in listing.splits.values())
    # One packer at a time holds the lock, so a folder of this name is what a killed one left.
    draft = folder.with_name(f".packing-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    packed: dict[str, _Packed] = {}
    done = 0
    try:
        for name, split in listing.splits.items():
            packed[name] = _pack_images(
                split,
                image_size,
                grey_range,
                draft / f"{name}.images.npy",
                lambda count, start=done: progress(start + count, total),
            )
            done += len(split.names)
            _check_broken(source.name, listing, packed, total)
        grey = _scale_grey(listing, packed, image_size, grey_range, draft, source.name, progress)
        facts = {name: split.facts for name, split in packed.items()}
        names = {
            name: [listing.splits[name].names[i] for i in map(int, split.kept)]
            for name, split in packed.items()
        }
        for name in packed:
            for kind, array in zip(_FACTS, facts[name], strict=True):
                with _synced(draft / f"{name}.{kind}.npy") as file:
                    np.save(file, array)
        fingerprint, unordered = _fingerprints(listing.class_names, facts)
        manifest = Manifest(
            version=STORE_VERSION,
            name=source.name,
            class_names=listing.class_names,
            image_size=image_size,
            counts={name: len(split.kept) for name, split in packed.items()},
            broken=tuple(name for split in packed.values() for name in split.broken),
            overlaps=find_overlaps(facts, names),
            fingerprint=fingerprint,
            unordered=unordered,
            grey=grey,
        )
        with _synced(draft / "manifest.json") as file:
            file.write(json.dumps(asdict(manifest), indent=2).encode())
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_broken(
    dataset: str, listing: Listing, packed: Mapping[str, "_Packed"], total: int
) -> None:
    """Refuse a data set of which too many files cannot be decoded, or all of a split or a class."""
    broken = [name for split in packed.values() for name in split.broken]
    if not broken:
        return
    most = max(MAX_BROKEN * total, min(FEW_BROKEN, MAX_BROKEN_OF_FEW * total))
    first = f"first: {', '.join(broken[:NUM_EXAMPLES])}"
    if len(broken) > most:
        allowed = f"no more than {int(most):,}" if most >= 1 else "none"
        raise DataError(
            f"{dataset}: {len(broken):,} of {total:,} files cannot be decoded, and {allowed} may "
            f"be left out; {first}: mend or remove them"
        )
    for name, split in packed.items():
        labels = np.asarray(listing.splits[name].labels)
        lost = np.setdiff1d(labels, labels[split.kept])
        if len(split.kept) == 0 or (len(lost) and listing.class_names):
            what = f"image of {listing.class_names[lost[0]]}" if listing.class_names else "image"
            raise DataError(
                f"{dataset}: no {what} in {name} can be decoded; {first}: mend them, or add others "
                "that are whole"
            )


def _scale_grey(
    listing: Listing,
    packed: dict[str, "_Packed"],
    image_size: int,
    setting: GreySetting,
    folder: Path,
    dataset: str,
    progress: Progress,
) -> GreyScale | None:
    """Say how grey values of more than 8 bits became 8 bits; pack those that waited for a scale."""
    files = [
        (listing.splits[name].names[int(split.kept[row])], extent)
        for name, split in packed.items()
        for row, extent in split.grey.items()
    ]
    if isinstance(setting, tuple):
        return describe_scale(files, setting, given=True)
    if not files:
        return None
    if setting == "file":
        return describe_scale(files, None, given=False)
    scale, done = choose_range(files, dataset), 0
    for name, split in packed.items():
        rows = sorted(split.grey)
        waiting = _decode(listing.splits[name], split.kept[rows].tolist(), image_size, scale)
        array = np.lib.format.open_memmap(folder / f"{name}.images.npy", mode="r+")
        for row, image in zip(rows, waiting, strict=True):
            if isinstance(image, str):
                raise DataError(f"{dataset}: changed while it was packed: {image}")
            array[row], split.facts.hashes[row] = image.pixels, image.pixel_hash
            done += 1
            if done % CHUNK == 0 or done == len(files):
                progress(done, len(files))
        array.flush()
    return describe_scale(files, scale, given=False)


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file whose content is on the disk when it is closed."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


class _Packed(NamedTuple):
    """What was packed of a split: indices kept, what is known of these, names of broken files."""

    kept: np.ndarray
    facts: ImageFacts
    broken: list[str]
    grey: dict[int, GreyExtent]  # by index in ``kept``


def _pack_images(
    split: SourceSplit,
    image_size: int,
    grey_range: GreySetting,
    path: Path,
    progress: Callable[[int], None],
) -> _Packed:
    """Decode a split into an array file.

    The file is written in order, not through a memory map: a broken image leaves no row to close
    up, and a full disk is an error that can be explained instead of a bus error.
    """
    kept: list[int] = []
    broken: list[str] = []
    hashes: list[int] = []
    contents: list[int] = []
    grey: dict[int, GreyExtent] = {}
    total = len(split.names)
    with _synced(path) as file:
        _write_header(file, (total, 3, image_size, image_size))
        start = file.tell()
        for done, image in enumerate(_decode(split, range(total), image_size, grey_range), 1):
            if isinstance(image, str):
                broken.append(image)
            else:
                if image.grey is not None:
                    grey[len(kept)] = image.grey
                file.write(image.pixels.data)
                kept.append(done - 1)
                hashes.append(image.pixel_hash)
                contents.append(image.content)
            if done == total or done % PROGRESS_EVERY == 0:
                progress(done)
        if broken:
            file.seek(0)
            _write_header(file, (len(kept), 3, image_size, image_size))
            assert file.tell() == start  # NumPy pads the header for a first axis of any length
    index = np.asarray(kept, dtype=np.int64)
    pixel_hashes, content = np.asarray([hashes, contents], dtype=np.uint64)
    labels = np.asarray(split.labels, dtype=np.int64)[index]
    return _Packed(index, ImageFacts(labels, pixel_hashes, content), broken, grey)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode(
    split: SourceSplit, index: Sequence[int], image_size: int, grey_range: GreySetting
) -> Iterator[PackedImage | str]:
    """Decode in threads (PIL releases the GIL), a bounded number of images ahead.

    Yields:
        The images in order; of a broken one its name and what is wrong.
    """

    def decode(i: int) -> PackedImage | str:
        try:
            image = pack_image(partial(split.read, i), image_size, grey_range)
        except Exception as error:  # PIL raises nearly anything on a broken file
            return f"{split.names[i]} ({reason(error)})"
        pixels = np.ascontiguousarray(image.pixels)
        return image._replace(pixels=pixels, pixel_hash=int(hash_images(pixels[None])[0]))

    def decode_some(some: Sequence[int]) -> list[PackedImage | str]:
        return list(map(decode, some))

    threads = min(MAX_THREADS, cpu_count())
    most_waiting = 2 * threads + 1
    size = max(1, min(CHUNK, MAX_AHEAD // most_waiting))
    waiting: deque[Future[list[PackedImage | str]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(index), size):
            waiting.append(pool.submit(decode_some, index[start : start + size]))
            if len(waiting) == most_waiting:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
