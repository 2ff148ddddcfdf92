"""What an earlier run has seen: no image that a run is scored on may have been trained on."""

import logging
import re
from dataclasses import replace

import numpy as np

from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError, SmallViTError
from smallvit.core.run_folder import Run
from smallvit.data.loader import Dataset
from smallvit.run.data import load_dataset
from smallvit.run.recipe import Recipe

logger = logging.getLogger("smallvit")
# CINIC-10 spreads the images of CIFAR-10 over its three splits (Darlow et al., 2018,
# https://arxiv.org/abs/1810.03505): what one holds out may be trained on in the other.
SHARING = {
    "CIFAR-10": re.compile(r"(?<![a-z0-9])cifar[-_ ]?10(?![0-9])", re.IGNORECASE),
    "CINIC-10": re.compile(r"(?<![a-z0-9])cinic[-_ ]?10(?![0-9])", re.IGNORECASE),
}
OTHER_LABELS = "other labels"
ALLOWED = " (shares images: --allow-leak)"


def check_leak(extra_data: str, dataset_name: str, *, allow: bool, option: str) -> str:
    """Refuse what saw CIFAR-10 for CINIC-10 and the other way round, told by the names.

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
    ours = _sharing(dataset_name)
    sources = extra_data.split(", ")
    for i, source in enumerate(sources):
        theirs = _sharing(source)
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


def other_data(run: Run, dataset: Dataset, option: str, *, allow_leak: bool = False) -> str:
    """Say what a run was trained on beside a dataset, and refuse one that saw its held-out images.

    On the same images the splits have to be the same. Of other data the images are compared by
    their pixels: labels of held-out images must not have been seen, while images alone may have
    been in stage 1, which is said and recorded.

    Args:
        run: Run that a new one is to build on.
        dataset: Data of the new run.
        option: What named the run, for messages.
        allow_leak: Go on where the other data is known to share images with this; see
            ``check_leak``.

    Returns:
        ``"none"``, the name of the other data, or what other labels of the same images it had.

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
        return _other_labels(run, dataset, option)
    marked = check_leak(name, dataset.name, allow=allow_leak, option=f"{option} {run.path}")
    unlabelled = not env["dataset"]["class_names"]
    if run.result["stage"] == "segment":
        logger.warning(
            "%s %s was trained on images with masks (%s): whether validation or test images of %s "
            "are among them cannot be told",
            option,
            run.path,
            name,
            dataset.name,
        )
        return marked
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
        return marked
    held = (
        ""
        if seen is None
        else " and ".join(
            f"{count:,} of the {len(dataset.splits[split]):,} {split} images"
            for split, count in seen.items()
        )
    )
    without_labels = run.result["stage"] == "pretrain" and (unlabelled or name != dataset.name)
    if without_labels or marked != name:
        logger.warning(
            "%s %s was %s on %s, which holds %s of %s: the accuracy may be too high, and is "
            "recorded with it",
            option,
            run.path,
            "pretrained without labels" if without_labels else "trained",
            name,
            held,
            dataset.name,
        )
        return marked.replace(name, f"{name} (with {held})", 1)
    what = f"which hold {held} of this data" if held else "so their splits cannot be compared"
    raise ConfigError(
        f"{option} {run.path} was trained on other images, called {name}, {what}: train it again "
        "on these images"
    )


def _other_labels(run: Run, dataset: Dataset, option: str) -> str:
    """Say which labels of the same images a run was trained on, where they are not these."""
    if run.result["stage"] in ("pretrain", "segment"):
        return "none"
    if run.env["split_hashes"]["labelled"] == dataset.split_hashes["labelled"]:
        return "none"
    theirs, ours = run.result.get("num_labels"), len(dataset.splits["labelled"])
    logger.warning(
        "%s %s was trained on %s labels of %s, not on the %d of this run: it is recorded",
        option,
        run.path,
        theirs,
        dataset.name,
        ours,
    )
    return f"{OTHER_LABELS} of {dataset.name} ({theirs} where this has {ours})"


def join_extra_data(*sources: str) -> str:
    """Join what several runs were trained on beside a dataset."""
    names = {name for source in sources for name in source.split(", ")} - {"none"}
    return ", ".join(sorted(names)) or "none"


def _sharing(name: str) -> str | None:
    """Return which of the data sets that share images a name speaks of, if any."""
    return next((known for known, pattern in SHARING.items() if pattern.search(name)), None)


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
