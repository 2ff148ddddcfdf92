"""Opening the data of a finished run where it lies, or where it was moved to: known by its content.

Shapes in this file:
    N    images of a split
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from smallvit.core import places
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.config import DataConfig
from smallvit.inference.export import ExportedInput, exported_input
from smallvit.runs.config import Recipe
from smallvit.runs.data import load_dataset
from smallvit.runs.learned import FILE, SPLITS, KeptSplit, contents_of, is_same_data, read_record

logger = logging.getLogger("smallvit")


class MovedError(DataError):
    """The images of a run are not where they were looked for.

    Attributes:
        found: How many of them are there.
    """

    def __init__(self, message: str, found: int = 0) -> None:
        super().__init__(message)
        self.found = found


def open_run_data(run: Run, needed: Sequence[str], *, place: Path | str | None = None) -> Dataset:
    """Open the data that a run was trained on.

    What is there needs not be the same as a whole: the images of the splits that are needed are
    taken by their content, wherever they lie in it, in the order that the run had.

    Args:
        run: A finished run with an export.
        needed: Splits whose images are needed.
        place: Where the data is; ``None`` is where it was.

    Returns:
        The data, as the run saw it; other splits than those needed may be missing.

    Raises:
        DataError: If the data is not there, is broken, or lacks some of the images; or if the
            run's export does.
    """
    config, input_ = recipe_of(run).data, exported_input(run.path / "export")
    config = replace(config, image_size=config.image_size or input_.image_size)
    scale = run.env["dataset"].get("grey_range")
    if isinstance(scale, list):
        # What all files decided then: others beside them are not to change the pixels of these.
        config = replace(config, grey_range=(scale[0], scale[1]))
    if place is not None:
        config = at_place(config, place)
    try:
        dataset = _load(config, moved=place is not None, by_content=(run.path / FILE).is_file())
    except DataError as error:
        if place is None and config.path is not None and not config.path.exists():
            raise MovedError(_moved(run, f"nothing is at {config.path}")) from error
        raise
    if is_same_data(run, dataset):
        return dataset
    where = config.path or config.dataset
    if not (run.path / FILE).is_file():
        raise MovedError(
            _moved(run, f"the images at {where}, or their splits, are not those that it had")
        )
    return _take_splits(run, dataset, needed, str(where), input_)


def _load(config: DataConfig, *, moved: bool, by_content: bool) -> Dataset:
    """Open data that need not lie, or be whole, as its settings tell.

    Args:
        config: The settings.
        moved: Whether it is in another place, where there may be no such columns or folders.
        by_content: Whether its images will be taken by their content, so that no cut is needed.

    Raises:
        ConfigError: If the columns or the layout are not those of the data.
        DataError: If it is missing or broken, or cannot be cut.
    """
    ways = [config]
    if moved:
        ways.append(replace(config, image_column=None, label_column=None, layout=None))
    if by_content:
        ways += [replace(way, val_fraction=0.0, test_fraction=0.0) for way in ways]
    errors: list[ConfigError | DataError] = []
    for way in dict.fromkeys(ways):
        try:
            return load_dataset(way)
        except (ConfigError, DataError) as error:
            errors.append(error)
    raise errors[0]


def check_same(run: Run, dataset: Dataset, named: str) -> None:
    """Refuse other images, labels or splits than a run's own.

    Args:
        run: The run.
        dataset: What was opened for it.
        named: What named the run, for the message.

    Raises:
        MovedError: Saying how many of its images are there, where that is known.
    """
    if is_same_data(run, dataset):
        return
    counts, found = "", 0
    if (run.path / FILE).is_file():
        there, known = contents_of(dataset.content_hashes), read_record(run.path).contents
        found = int(np.isin(known, there).sum())
        counts = f" ({found:,} of its {len(known):,} images are there, among {len(there):,})"
    raise MovedError(
        f"{named}: {dataset.name} is not the data that it was trained on, or is split or labelled "
        f"in another way{counts}: put it back as it was, or name its place with --data",
        found=found,
    )


def recipe_of(run: Run) -> Recipe:
    """Return the settings of a run; those that its version did not know have their defaults."""
    return resolve(Recipe, [Layer(source=str(run.path / "recipe.yaml"), values=run.recipe)])


def at_place(config: DataConfig, place: Path | str) -> DataConfig:
    """Return the settings of the same data in another place."""
    if str(place).startswith("hf:"):
        return replace(config, dataset=str(place), path=None)
    return replace(config, dataset=None, path=places.absolute(place))


def _moved(run: Run, what: str) -> str:
    return f"{run.path}: {what}; where its images are elsewhere, name their place with --data"


def _take_splits(
    run: Run, dataset: Dataset, needed: Sequence[str], where: str, as_trained: ExportedInput
) -> Dataset:
    """Return a run's splits out of a data set that holds their images, among others perhaps.

    Raises:
        MovedError: If images of a split that is needed are not there, or have another class.
    """
    env, kept = run.env, read_record(run.path).splits
    contents = contents_of(dataset.content_hashes)
    order = np.argsort(contents, kind="stable")
    splits: dict[str, Split] = {}
    for name in (name for name in kept if name in needed):
        at = np.searchsorted(contents[order], kept[name].contents)
        position = order[np.minimum(at, len(order) - 1)]
        found = contents[position] == kept[name].contents
        if not found.all():
            what = f"{int(found.sum()):,} of its {len(found):,} {name} images are at {where}"
            raise MovedError(_moved(run, what), found=int(found.sum()))
        splits[name] = _take(dataset, position, kept[name])
    _check_labels(run, dataset, kept, needed, where)
    logger.info("%s: its %s images are taken out of %s", run.path, " and ".join(needed), where)
    return replace(
        dataset,
        name=env["dataset"]["name"],
        class_names=tuple(env["dataset"]["class_names"]),
        splits=splits,
        mean=as_trained.mean,
        std=as_trained.std,
        fingerprint=env["dataset"]["fingerprint"],
        split_hashes=env["split_hashes"],
        content_hashes={name: split.contents for name, split in kept.items()},
        image_hashes={},
    )


def _take(dataset: Dataset, position: np.ndarray, kept: KeptSplit) -> Split:
    """Gather images by their position among those of all splits, one split after the other."""
    size = dataset.image_size
    images = torch.empty((len(position), 3, size, size), dtype=torch.uint8)
    first = 0
    for name in SPLITS:
        split = dataset.splits[name]
        here = np.flatnonzero((position >= first) & (position < first + len(split)))
        if len(here):
            images[torch.from_numpy(here)] = split.take(torch.from_numpy(position[here] - first))
        first += len(split)
    labels = torch.from_numpy(kept.labels.astype(np.int64))
    return Split(images=images, labels=labels, index=torch.arange(len(position)))


def _check_labels(
    run: Run,
    dataset: Dataset,
    kept: Mapping[str, KeptSplit],
    needed: Sequence[str],
    where: str,
) -> None:
    """Refuse images that have another class than the run had them in, where they have any.

    Raises:
        MovedError: Saying how many.
    """
    class_names = run.env["dataset"]["class_names"]
    if not (dataset.labelled and class_names):
        return
    there: set[tuple[int, str]] = set()
    for name in SPLITS:
        split = dataset.splits[name]
        labels = split.labels[split.index].tolist()
        names = (dataset.class_names[label] for label in labels)
        there |= set(zip(dataset.content_hashes[name].tolist(), names, strict=True))
    for name in needed:
        ours = zip(kept[name].contents.tolist(), kept[name].labels.tolist(), strict=True)
        others = sum((content, class_names[label]) not in there for content, label in ours)
        if others:
            raise MovedError(
                f"{run.path}: {others:,} of its {len(kept[name].contents):,} {name} images have "
                f"another class at {where}: put their classes back, or train it again",
                found=len(kept[name].contents),
            )
