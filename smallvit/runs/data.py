"""The data of a run: found, fetched and packed with progress on the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallvit.core import places
from smallvit.core.console import console, open_bars
from smallvit.core.errors import ConfigError
from smallvit.core.once import say_once
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset
from smallvit.data.files import load, official
from smallvit.data.files.class_lists import some
from smallvit.data.files.config import DataConfig
from smallvit.data.files.fetch import FetchProgress
from smallvit.data.files.registry import DATASETS
from smallvit.data.files.sources import Source, find_files
from smallvit.data.files.store import Progress as PackProgress
from smallvit.data.files.walk import is_written

logger = logging.getLogger("smallvit")


def load_dataset(config: DataConfig) -> Dataset:
    """Open a dataset from this machine's folders, fetching and packing it where need be."""
    with show_progress() as (pack_progress, fetch_progress):
        dataset = load.load_dataset(
            config,
            data_dir=places.data_dir(),
            cache_dir=places.cache_dir(),
            offline=places.offline(),
            progress=pack_progress,
            fetch_progress=fetch_progress,
        )
    if dataset.kind:
        say_once(logging.INFO, f"{dataset.name}: {describe(dataset)}")
    notes = list(dataset.left_out)
    if dataset.broken:
        notes.append(
            f"{len(dataset.broken)} files could not be decoded and are left out: "
            f"{some(dataset.broken)}"
        )
    for note in (*notes, *dataset.notes):
        say_once(logging.WARNING, f"{dataset.name}: {note}")
    return dataset


def check_out(out: Path | None, config: DataConfig) -> None:
    """Refuse results among the images; say where they lie below the images' folder.

    A run folder is never read as images, by whoever made it. Other programs read all they find, so
    that none is made in a folder that holds images.

    Args:
        out: Where results go; ``None`` is the runs folder.
        config: The images.

    Raises:
        ConfigError: If ``out`` lies in a folder of images below the one that was named.
    """
    if config.path is None or not config.path.is_dir():
        return
    root, target = config.path.resolve(), (out or places.runs_dir()).resolve()
    if out is not None and target == root:
        raise ConfigError(
            f"--out {out} is the folder of the images: name a new one, as in --out {out / 'run1'}"
        )
    if target == root or not target.is_relative_to(root):
        return
    first = root / target.relative_to(root).parts[0]
    if (
        out is not None
        and first.is_dir()
        and not is_written({each.name for each in first.iterdir()})
    ):
        images = find_files(first)
        if images:
            raise ConfigError(
                f"--out {out} lies in {first}, which holds images ({images[0].name}): choose a "
                f"folder outside, or a new one beside it, as in --out {root / 'runs' / target.name}"
            )
    logger.info("%s lies below the images of --data: it is passed over when these are read", target)


def describe(dataset: Dataset) -> str:
    """Say in one line how the user's own images were read: layout, classes, splits, counts."""
    if not dataset.labelled:
        return f"read as {dataset.kind}, without labels: images {len(dataset.splits['train']):,}"
    train = dataset.splits["train"].images
    sizes = ", ".join(
        f"{name} {len(split):,}{'' if name == 'train' or split.images is not train else ' (cut)'}"
        for name, split in dataset.splits.items()
        if name != "labelled"
    )
    classes = f"{dataset.num_classes} classes ({some(dataset.class_names)})"
    return f"read as {dataset.kind}: {classes}, images {sizes}"


def open_here(config: DataConfig) -> Source:
    """Open the images of a config where they are on this machine; nothing is downloaded.

    Raises:
        DataError: If they are not here; the message says what fetches them.
    """
    spec = DATASETS.get(config.dataset or "")
    if spec is not None:
        return official.open_named(spec, data_dir=places.data_dir())
    return load.open_source(config, data_dir=places.data_dir(), offline=True)


def open_or_fetch(config: DataConfig, progress: FetchProgress) -> Source:
    """Open the images of a config, fetching them where need be."""
    return load.open_source(
        config, data_dir=places.data_dir(), offline=places.offline(), progress=progress
    )


def pack(source: Source, config: DataConfig) -> Dataset:
    """Pack and split the images of a source, with progress."""
    with show_progress() as (progress, _):
        return load.prepare_dataset(source, config, cache_dir=places.cache_dir(), progress=progress)


def find_image_size(config: DataConfig) -> int:
    """Return the side that the images of a config are packed at, in pixels."""
    if config.image_size is not None:
        return config.image_size
    with show_progress() as (_, fetch_progress):
        source = open_or_fetch(config, fetch_progress)
    return load.find_image_size(source, cache_dir=places.cache_dir())


def require_labels(dataset: Dataset, purpose: str) -> Dataset:
    """Return a dataset, unless it has no labels where they are needed.

    Raises:
        ConfigError: If it has none.
    """
    if not dataset.labelled:
        raise ConfigError(
            f"{dataset.name} has no labels, and {purpose} needs them: put the images in one folder "
            "a class, or give a CSV with the columns image_path and label"
        )
    return dataset


def say_other_grey(run: Run, dataset: Dataset, option: str) -> None:
    """Warn where a run saw grey values of more than 8 bits on another scale than a dataset has.

    Args:
        run: Run that a new one builds on.
        dataset: Data of the new run.
        option: What named the run.
    """
    theirs, ours = run.env["dataset"].get("grey_range"), dataset.grey_range
    if isinstance(theirs, list | tuple) and ours is not None and tuple(theirs) != ours:
        low, high = theirs
        here = "each file on its own" if ours == "file" else f"{ours[0]:g} to {ours[1]:g}"
        logger.warning(
            f"{option} {run.path} saw grey values on the scale {low:g} to {high:g}, {dataset.name} "
            f"has {here}: the same picture has other pixels here; --data.grey-range {low:g} "
            f"{high:g} keeps them"
        )


@contextmanager
def show_progress() -> Iterator[tuple[PackProgress, FetchProgress]]:
    """Show bars on a terminal, and elsewhere a line at the start of each long piece of work."""
    with open_bars() as bars:
        tasks = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
                if not console.is_terminal:
                    logger.info("%s", what)
            bars.update(tasks[what], completed=done, total=total)

        yield lambda done, total: report(f"Packing {total:,} images", done, total), report
