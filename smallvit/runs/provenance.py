"""What an earlier run has seen: no image that a run is scored on may have been trained on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset
from smallvit.data.files.registry import sharing_dataset
from smallvit.runs.learned import NOTHING, Learned, Record, contents_of, find_record

logger = logging.getLogger("smallvit")
OTHER_LABELS = "other labels"
ALLOWED = " (shares images: --allow-leak)"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run brings to one that builds on it.

    Attributes:
        extra_data: What it and all it builds on saw beside the new run's data: ``"none"``, names of
            other data, or what other labels of the same images it had.
        learned: The images that it and all it builds on learned, as far as is known.
        foreign: Whether it learned images or classes itself that the new run's data has not.
    """

    extra_data: str
    learned: Learned = NOTHING
    foreign: bool = False


def check_leak(extra_data: str, dataset_name: str, *, allow: bool, option: str) -> str:
    """Refuse what saw a data set that shares images with another, told by their names.

    Args:
        extra_data: What a network has seen beside the data set, as results record it.
        dataset_name: Data set that the new run is scored on.
        allow: Record it instead. What an earlier run recorded so is not asked for again.
        option: What named the network, and which, for messages.

    Returns:
        ``extra_data`` with a mark on what shares images with the data set.

    Raises:
        ConfigError: If it may have seen held-out images and that is not allowed.
    """
    ours = sharing_dataset(dataset_name)
    sources = extra_data.split(", ")
    for i, source in enumerate(sources):
        theirs = sharing_dataset(source)
        if not (ours and theirs) or ours == theirs or source.endswith(ALLOWED):
            continue
        if not allow:
            raise ConfigError(
                f"{option} saw {source}, and {theirs} and {ours} share images: held-out ones of "
                f"{dataset_name} may be among them; take one that did not, or pass --allow-leak "
                "to go on and have it recorded"
            )
        sources[i] = f"{source}{ALLOWED}"
    return ", ".join(sources)


def other_data(run: Run, dataset: Dataset, option: str, *, allow_leak: bool = False) -> Seen:
    """Say what a run has seen beside a dataset, and refuse one that knows its held-out images.

    The run's record of what it learned is asked, and of what all it builds on learned, by the
    content of the images. Labels of held-out images must not have been learned, nor may stage 1
    have taken held-out images of data that it could have split alike. Images that were learned
    without labels in other data are said and recorded. Of what its chain saw beside its own data,
    the names are asked.

    Args:
        run: Run that a new one is to build on.
        dataset: Data of the new run.
        option: What named the run, for messages.
        allow_leak: Go on with what may know held-out images; it is recorded.

    Raises:
        ConfigError: If validation or test images may have been trained on.
        DataError: If the run's record is broken.
    """
    named = f"{option} {run.path}"
    seen = _seen_by_itself(run, dataset, option, allow_leak=allow_leak)
    extra_data = join_extra_data(seen.extra_data, run.result.get("extra_data", "none"))
    extra_data = check_leak(extra_data, dataset.name, allow=allow_leak, option=named)
    return replace(seen, extra_data=extra_data)


def _seen_by_itself(run: Run, dataset: Dataset, option: str, *, allow_leak: bool) -> Seen:
    """Say what a run has seen beside a dataset, without what the runs that it builds on have."""
    env, named = run.env, f"{option} {run.path}"
    name = str(env["dataset"]["name"])
    same = env["dataset"]["fingerprint"] == dataset.fingerprint
    record = find_record(run, dataset)
    if record is None:
        return _untold(run, dataset, named, allow_leak=allow_leak)
    beside, foreign = "none", not same and _knows_others(record, run, dataset)
    if foreign:
        beside = check_leak(name, dataset.name, allow=allow_leak, option=named)
    held = _find_held_out(record, run, dataset)
    if held is None or _is_recorded(held, run, dataset):
        labels = _other_labels(record, run, dataset, named) if beside == "none" else beside
        return Seen(extra_data=labels, learned=record.learned, foreign=foreign)
    if held.refused and not allow_leak:
        remedy = "use its data.split_seed and fractions" if same else "train it again on this data"
        if not same and name == dataset.name and run.recipe["data"].get("split_version") == 1:
            remedy = "take its cut with --data.split-version 1, or train it again on this data"
        raise ConfigError(
            f"{named} {held.how} {held.images} of {dataset.name}: {remedy}, or pass --allow-leak "
            "to go on and have it recorded"
        )
    logger.warning(
        f"{named} {held.how} {held.images} of {dataset.name}: the accuracy may be too high, and is "
        "recorded with it"
    )
    mark = ALLOWED if held.refused or beside.endswith(ALLOWED) else ""
    return Seen(
        extra_data=f"{name} (with {held.images}){mark}", learned=record.learned, foreign=foreign
    )


def count_held_out(hashes: np.ndarray, dataset: Dataset) -> dict[str, int]:
    """Count the held-out images of a dataset, by split, that are among some.

    What the dataset holds in its training split as well does not count: it is said of the data
    itself.

    Args:
        hashes: Content hashes.
        dataset: Images and splits.
    """
    train = dataset.content_hashes["train"]
    counts = {}
    for split in ("val", "test"):
        contents = dataset.content_hashes[split]
        counts[split] = int((np.isin(contents, hashes) & ~np.isin(contents, train)).sum())
    return {split: count for split, count in counts.items() if count}


def check_scored(run: Run, dataset: Dataset, split: str) -> str | None:
    """Say in one line what a run that is scored knew of the images, unless it is recorded."""
    record = find_record(run, dataset)
    counts = {} if record is None else count_held_out(record.learned.labelled, dataset)
    if split not in counts or ALLOWED in run.result.get("extra_data", "none"):
        return None
    return (
        f"{run.path} and what it builds on learned the labels of "
        f"{_listed({split: counts[split]}, dataset)} that it is scored on: train it again from a "
        "start that did not"
    )


class _HeldOut(NamedTuple):
    """Held-out images that a run knows.

    Attributes:
        images: How many, of which splits.
        how: What it did with them.
        refused: Whether that is no start.
    """

    images: str
    how: str
    refused: bool


def _find_held_out(record: Record, run: Run, dataset: Dataset) -> _HeldOut | None:
    learned = record.learned
    if labelled := count_held_out(learned.labelled, dataset):
        return _HeldOut(_listed(labelled, dataset), "learned the labels of", refused=True)
    counts = count_held_out(learned.unlabelled, dataset)
    if not counts:
        return None
    # What has no labels, or is other data for the most part, could not have been split as this is.
    alike = bool(run.env["dataset"]["class_names"]) and _is_mostly(record, dataset)
    refused = alike and bool(count_held_out(record.own.unlabelled, dataset))
    return _HeldOut(_listed(counts, dataset), "was pretrained without labels on", refused)


def _is_mostly(record: Record, dataset: Dataset) -> bool:
    """Tell whether most images of a run's data are a dataset's, whatever folder they lie in."""
    theirs, ours = record.contents, contents_of(dataset.content_hashes)
    return 2 * int(np.isin(theirs, ours).sum()) > len(theirs)


def _is_recorded(held: _HeldOut, run: Run, dataset: Dataset) -> bool:
    """Tell whether a run of the same splits was let take its start, and says so."""
    ours, theirs = dataset.split_hashes, run.env["split_hashes"]
    same = all(theirs[split] == ours[split] for split in ("val", "test"))
    return same and held.images in run.result.get("extra_data", "none")


def _listed(counts: Mapping[str, int], dataset: Dataset) -> str:
    return " and ".join(
        f"{count:,} of the {len(dataset.splits[split]):,} {split} images"
        for split, count in counts.items()
    )


def _knows_others(record: Record, run: Run, dataset: Dataset) -> bool:
    """Tell whether a run learned images that a dataset does not have, or other classes of them."""
    classes = tuple(run.env["dataset"]["class_names"])
    masks = run.result["stage"] == "segment" and not dataset.labelled
    if len(record.own.labelled) and classes != dataset.class_names and not masks:
        return True
    own = np.concatenate([record.own.labelled, record.own.unlabelled])
    return not bool(np.isin(own, contents_of(dataset.content_hashes)).all())


def _untold(run: Run, dataset: Dataset, named: str, *, allow_leak: bool) -> Seen:
    """Say what is known of a run that kept no record, and whose data is not here as it was.

    Raises:
        ConfigError: If it was trained on data of the same name, whose splits are not these, or on
            data that shares images with it by its name.
    """
    name = run.env["dataset"]["name"]
    told = (
        f"{named} keeps no record of what it learned, and its images, called {name}, are not here "
        f"as they were: whether validation or test images of {dataset.name} are among them cannot "
        "be told"
    )
    if name != dataset.name:
        beside = check_leak(name, dataset.name, allow=allow_leak, option=named)
        logger.warning(told)
        return Seen(extra_data=beside, foreign=True)
    if not allow_leak:
        raise ConfigError(
            f"{told}: train it again on this data, or pass --allow-leak to go on and have it "
            "recorded"
        )
    logger.warning(f"{told}; it is recorded")
    return Seen(extra_data=f"{name} (images unknown){ALLOWED}")


def _other_labels(record: Record, run: Run, dataset: Dataset, named: str) -> str:
    """Say which labels of the same images a run was trained on, where they are not these."""
    if run.result["stage"] in ("pretrain", "segment"):
        return "none"
    if run.env["dataset"]["fingerprint"] == dataset.fingerprint:
        same = run.env["split_hashes"]["labelled"] == dataset.split_hashes["labelled"]
    else:
        same = bool(np.isin(record.own.labelled, dataset.content_hashes["labelled"]).all())
    if same:
        return "none"
    theirs, ours = run.result.get("num_labels"), len(dataset.splits["labelled"])
    logger.warning(
        f"{named} was trained on {theirs} labels of {dataset.name}, not on the {ours} of this run: "
        "it is recorded"
    )
    return f"{OTHER_LABELS} of {dataset.name} ({theirs} where this has {ours})"


def join_extra_data(*sources: str) -> str:
    """Join what several runs were trained on beside a dataset."""
    names = {name for source in sources for name in source.split(", ")} - {"none"}
    return ", ".join(sorted(names)) or "none"
