"""What an earlier run has seen: no image that a run is scored on may have been trained on."""

import logging
from dataclasses import replace

import numpy as np

from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError, SmallViTError
from smallvit.core.run_folder import Run
from smallvit.data.loader import Dataset
from smallvit.run.data import load_dataset
from smallvit.run.recipe import Recipe

logger = logging.getLogger("smallvit")


def other_data(run: Run, dataset: Dataset, option: str) -> str:
    """Say what a run was trained on beside a dataset, and refuse one that saw its held-out images.

    On the same images the splits have to be the same. Of other data the images are compared by
    their pixels: labels of held-out images must not have been seen, while images alone may have
    been in stage 1, which is said and recorded.

    Args:
        run: Run that a new one is to build on.
        dataset: Data of the new run.
        option: What named the run, for messages.

    Returns:
        ``"none"``, or the name of the other data.

    Raises:
        ConfigError: If validation or test images may have been trained on.
    """
    env = run.env
    name = str(env["dataset"]["name"])
    if env["dataset"]["fingerprint"] == dataset.fingerprint:
        for split in ("val", "test"):
            if env["split_hashes"][split] != dataset.split_hashes[split]:
                raise ConfigError(
                    f"{option} {run.path} was trained on another split of these images and may "
                    f"have seen this {split} split: use the same data.split_seed and fractions"
                )
        return "none"
    unlabelled = not env["dataset"]["class_names"]
    seen = _count_seen(run, dataset)
    if seen is None and name != dataset.name:
        logger.warning(
            "%s %s was trained on %s, which is not here any more: whether it holds validation or "
            "test images of %s cannot be told",
            option,
            run.path,
            name,
            dataset.name,
        )
    if not seen and (seen is not None or name != dataset.name):
        return name
    held = (
        ""
        if seen is None
        else " and ".join(
            f"{count:,} of the {len(dataset.splits[split]):,} {split} images"
            for split, count in seen.items()
        )
    )
    if run.result["stage"] == "pretrain" and (unlabelled or name != dataset.name):
        logger.warning(
            "%s %s was pretrained without labels on %s, which holds %s of %s: the accuracy may be "
            "too high, and is recorded with it",
            option,
            run.path,
            name,
            held,
            dataset.name,
        )
        return f"{name} (with {held})"
    what = f"which hold {held} of this data" if held else "so their splits cannot be compared"
    raise ConfigError(
        f"{option} {run.path} was trained on other images, called {name}, {what}: train it again "
        "on these images"
    )


def join_extra_data(*sources: str) -> str:
    """Join what several runs were trained on beside a dataset."""
    names = {name for source in sources for name in source.split(", ")} - {"none"}
    return ", ".join(sorted(names)) or "none"


def _count_seen(run: Run, dataset: Dataset) -> dict[str, int] | None:
    """Count held-out images that a run was trained on; ``None`` where its data is not here."""
    try:
        layer = Layer(source=str(run.path / "recipe.yaml"), values=run.recipe)
        theirs = resolve(Recipe, [layer]).data
        other = load_dataset(replace(theirs, image_size=dataset.image_size))
    except SmallViTError:
        return None
    trained = other.image_hashes("train")
    counts = {
        split: int(np.isin(dataset.image_hashes(split), trained).sum()) for split in ("val", "test")
    }
    return {split: count for split, count in counts.items() if count}
