"""What a run learned: hashes of its images, kept in its folder, which every later start asks.

The hashes are of the images' content: they stay true when the folder that a run was trained on
gets more images, loses some, moves or goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from smallvit.core import places
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import SmallViTError, explained
from smallvit.core.run_folder import Run
from smallvit.core.whole_file import replacing
from smallvit.data.dataset import Dataset
from smallvit.runs.config import Recipe
from smallvit.runs.data import open_here, pack
from smallvit.runs.recipe import BUILT_ON
from smallvit.segment.config import SegmentDataConfig
from smallvit.segment.data import load_segment_data

FILE = "learned.npz"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
Learns = Literal["labels", "images", "nothing"]


def _no_images() -> np.ndarray:
    return np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Images that a network learned from, by the hash of their content; sorted, each once.

    Attributes:
        labelled: Those with a label or a mask.
        unlabelled: Those without.
    """

    labelled: np.ndarray = field(default_factory=_no_images)
    unlabelled: np.ndarray = field(default_factory=_no_images)

    def __or__(self, other: "Learned") -> "Learned":
        """Join what two networks learned."""
        return Learned(
            labelled=np.union1d(self.labelled, other.labelled),
            unlabelled=np.union1d(self.unlabelled, other.unlabelled),
        )


NOTHING = Learned()


@dataclass(frozen=True, kw_only=True)
class KeptSplit:
    """A split of a run's data, in its order.

    Attributes:
        contents: Content hash of each image.
        labels: Class of each image.
    """

    contents: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run keeps of the images that it was made with.

    Attributes:
        own: What it learned itself.
        earlier: What the runs that it builds on had learned.
        splits: Its data, by split.
    """

    own: Learned
    earlier: Learned
    splits: Mapping[str, KeptSplit]

    @property
    def contents(self) -> np.ndarray:
        """Content hashes of all its images."""
        return contents_of({name: split.contents for name, split in self.splits.items()})

    @property
    def learned(self) -> Learned:
        """All that its network has learned from."""
        return self.own | self.earlier


def write_learned(folder: Path, dataset: Dataset, learns: Learns, earlier: Learned) -> None:
    """Keep in a run's folder what it is going to learn, what it builds on, and its splits.

    Args:
        folder: The run's.
        dataset: What it is trained on.
        learns: What it learns from: the labelled images, the training images without labels, or
            nothing.
        earlier: What the runs that it builds on learned.

    Raises:
        DataError: If the file cannot be written.
    """
    splits = _splits_of(dataset)
    arrays: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "learns": learns,
        "earlier.labelled": earlier.labelled,
        "earlier.unlabelled": earlier.unlabelled,
    }
    for name, split in splits.items():
        # A split of few labels is the training images but for some: which, is kept as bits.
        if name == "labelled":
            train, part = (dataset.splits[each].index.cpu().numpy() for each in ("train", name))
            arrays[name] = np.isin(train, part)
        else:
            arrays |= {f"{name}.contents": split.contents, f"{name}.labels": split.labels}
    with replacing(folder / FILE) as file:
        np.savez(file, **arrays)


def find_record(run: Run, dataset: Dataset | None = None) -> Record | None:
    """Return what a run keeps of its images; of a run that kept nothing, what can be told.

    Nothing is downloaded.

    Args:
        run: A run of any stage.
        dataset: Data that may be the same as the run's.

    Returns:
        The record; ``None`` where the run kept none and its images are not here as they were.

    Raises:
        DataError: If the file is broken.
    """
    if (run.path / FILE).is_file():
        return read_record(run.path)
    theirs = dataset
    if dataset is None or not is_same_data(run, dataset, but=("labelled",)):
        theirs = _load_here(run)
    if theirs is None:
        return None
    splits = _splits_of(theirs)
    if not is_same_data(run, theirs):
        # Which labels it had is told by its own data alone; else it may have had all of them.
        own = _load_here(run)
        splits["labelled"] = splits["train"] if own is None else _splits_of(own)["labelled"]
    return Record(own=_own(splits, _learns(run)), earlier=_find_earlier(run), splits=splits)


def read_record(folder: Path) -> Record:
    """Read what a run keeps of its images.

    Raises:
        DataError: If the file is missing or broken.
    """
    path = folder / FILE
    with explained(
        lambda error: (
            f"{path} is missing or broken ({type(error).__name__}): put it back, or remove it to "
            "have the run's data asked instead, if that is as it was"
        ),
        *(OSError, ValueError, LookupError, EOFError, BadZipFile),
    ):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if int(arrays["version"]) != FORMAT_VERSION:
            raise ValueError(f"format {arrays['version']}")
        splits = {
            name: KeptSplit(contents=arrays[f"{name}.contents"], labels=arrays[f"{name}.labels"])
            for name in SPLITS
        }
        train, labelled = splits["train"], arrays["labelled"]
        splits["labelled"] = KeptSplit(
            contents=train.contents[labelled], labels=train.labels[labelled]
        )
        earlier = Learned(
            labelled=arrays["earlier.labelled"], unlabelled=arrays["earlier.unlabelled"]
        )
        return Record(own=_own(splits, str(arrays["learns"])), earlier=earlier, splits=splits)


def is_same_data(run: Run, dataset: Dataset, *, but: Sequence[str] = ()) -> bool:
    """Tell whether a data set is a run's own, with the same splits ``but`` for some."""
    env = run.env
    theirs, ours = env["split_hashes"], dataset.split_hashes
    return env["dataset"]["fingerprint"] == dataset.fingerprint and all(
        theirs.get(split) == ours[split] for split in ours if split not in but
    )


def contents_of(splits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join the content hashes of the splits of a data set, one after the other."""
    return np.concatenate([splits[name] for name in SPLITS])


def _splits_of(dataset: Dataset) -> dict[str, KeptSplit]:
    splits = {}
    for name in (*SPLITS, "labelled"):
        split = dataset.splits[name]
        labels = split.labels[split.index].cpu().numpy().astype(np.int32)
        splits[name] = KeptSplit(contents=dataset.content_hashes[name], labels=labels)
    return splits


def _own(splits: Mapping[str, KeptSplit], learns: str) -> Learned:
    if learns == "labels":
        return Learned(labelled=np.unique(splits["labelled"].contents))
    if learns == "images":
        return Learned(unlabelled=np.unique(splits["train"].contents))
    return NOTHING


def _learns(run: Run) -> Learns:
    """Tell what a run that kept nothing learned from, by its stage."""
    stage = run.result["stage"]
    if stage == "label" or run.result.get("classifier") == "as it was":
        return "nothing"
    return "images" if stage == "pretrain" else "labels"


def _load_here(run: Run) -> Dataset | None:
    """Open the data of a run if it is on this machine, as the run saw it."""
    recipe = run.recipe
    try:
        if run.result["stage"] == "segment":
            layer = Layer(source=f"{run.path}: data", values=recipe.get("data", {}))
            config = resolve(SegmentDataConfig, [layer])
            dataset = load_segment_data(config, cache_dir=places.cache_dir()).dataset
        else:
            layer = Layer(source=str(run.path / "recipe.yaml"), values=recipe)
            data = resolve(Recipe, [layer]).data
            dataset = pack(open_here(data), data)
    except SmallViTError:
        return None
    return dataset if is_same_data(run, dataset) else None


def _find_earlier(run: Run) -> Learned:
    """Return what the runs learned that a run without a record builds on, as far as is known."""
    earlier = NOTHING
    for key in BUILT_ON:
        section, name = key.split(".")
        named = Path((run.recipe.get(section) or {}).get(name) or "scratch")
        for folder in (named, named.parent):  # that of a file of score maps
            if named.is_absolute() and (folder / "result.json").is_file():
                found = find_record(Run(folder))
                earlier |= NOTHING if found is None else found.learned
                break
    return earlier
