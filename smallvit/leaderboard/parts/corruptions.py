"""Accuracy on corrupted test images, made here or of the published archive."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallvit.data.dataset import Dataset
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.classify import predicted_classes
from smallvit.evaluate.corruptions import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    PROTOCOL,
    SEVERITIES,
    OfficialCorruptions,
    corrupt,
    open_official,
)
from smallvit.evaluate.pixel_classifier import predict_pixels
from smallvit.leaderboard.part import (
    FigureKind,
    Measured,
    OpenedRun,
    Part,
    subset_of,
    subset_positions,
    unpack_correct,
)
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.runs.monitor import EVAL_BATCH

CORRUPT_BATCH = 2048  # enough for all threads to have a share
logger = logging.getLogger("smallvit")


@dataclass(frozen=True, kw_only=True)
class _Corrupted:
    """Corrupted images of one origin.

    Attributes:
        key: What tells them from others.
        names: The corruptions.
        num_images: Images of a corruption and severity.
        made_by: How they were made, in words.
        walk: Yields batches of images and labels of a corruption and severity.
    """

    key: Mapping[str, Any]
    names: Sequence[str]
    num_images: int
    made_by: str
    walk: Callable[[str, int], Iterator[tuple[Tensor, Tensor]]]


def measure_corruptions(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Score networks of the same images together, so that each image is corrupted once.

    The task is the origin, ``generated`` or ``official``.
    """
    opened = _generate if task == "generated" else _open_archive
    images = opened(group[0], config)
    protocol = {
        f"Corruptions, {task}": f"Mean accuracy of 15 types at 5 severities, {images.made_by}; "
        f"{images.num_images:,} test images a type and severity. The 4 extra types are apart."
    }
    files = [each.kept(f"corruption-{task}", runtime, images.key) for each in group]
    kept = [file.read() for file in files]
    found: list[dict[str, float]] = [dict(each["figures"]) if each else {} for each in kept]
    if task == "generated" and images.num_images < len(group[0].test):
        chosen = subset_positions(group[0].test, config).cpu().numpy()
        for each, figures in zip(group, found, strict=True):
            right = unpack_correct(each.measured[0])
            figures["corruption/generated_clean"] = float(right[chosen].mean())
    for name in images.names:
        cells = [f"corruption/{task}/{name}/{severity}" for severity in SEVERITIES]
        missing = [i for i, figures in enumerate(found) if not figures.keys() >= set(cells)]
        if not missing:
            continue
        start = time.monotonic()
        scores = _score([group[i] for i in missing], images, name, runtime)
        for i, accuracies in zip(missing, scores, strict=True):
            found[i] |= dict(zip(cells, accuracies, strict=True))
            figures = _with_means(found[i], task)
            kept[i] = files[i].write({"figures": figures, "protocol": protocol})
        logger.info(
            "corruption %s (%s) of %d network%s: %.0f s",
            name,
            task,
            len(missing),
            "s" * (len(missing) > 1),
            time.monotonic() - start,
        )
    return [[measured] for measured in kept if measured is not None]


def _generate(opened: OpenedRun, config: BenchConfig) -> _Corrupted:
    """Corrupt test images here.

    Draws go by the position among the test images, which stand in the order of their contents:
    files that are renamed are corrupted as before.
    """
    split = subset_of(opened.test, config)
    chosen = subset_positions(opened.test, config)
    key: dict[str, Any] = {"n": len(split), "seed": config.seed, "generator": PROTOCOL}
    if not torch.equal(chosen, split.index):
        key["draws by"] = "position"

    def walk(name: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        for position in torch.arange(len(split), device=split.index.device).split(CORRUPT_BATCH):
            images = split.take(position)
            corrupted = corrupt(images, name, severity, seed=config.seed, indices=chosen[position])
            labels = split.labels[split.index[position]]
            yield from zip(corrupted.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)

    return _Corrupted(
        key=key,
        names=ALL_CORRUPTIONS,
        num_images=len(split),
        made_by=f"made here ({PROTOCOL}, seed {config.seed}; frost is drawn, not photographed)",
        walk=walk,
    )


def _open_archive(opened: OpenedRun, config: BenchConfig) -> _Corrupted:
    archive = _archive(opened.dataset, config)
    device = opened.test.index.device
    num_images = len(archive.labels)
    return _Corrupted(
        key={"archive": _fingerprint(archive.path), "names": archive.names, "n": num_images},
        names=archive.names,
        num_images=num_images,
        made_by=f"of the published archive {archive.path.name}",
        walk=lambda name, severity: archive.batches(
            name, severity, batch_size=EVAL_BATCH, device=device
        ),
    )


def _score(
    group: Sequence[OpenedRun], images: _Corrupted, name: str, runtime: Runtime
) -> list[list[float]]:
    """Return the accuracy of each network at each severity."""
    classifiers = [each.classifier for each in group]
    scores: list[list[float]] = [[] for _ in group]
    for severity in SEVERITIES:
        right = [torch.zeros((), device=group[0].test.index.device) for _ in group]
        for batch, labels in images.walk(name, severity):
            for count, classifier in zip(right, classifiers, strict=True):
                logits = predict_pixels(classifier, [batch], autocast=runtime.autocast)
                count += (predicted_classes(logits) == labels).sum()
        for of_network, count in zip(scores, right, strict=True):
            of_network.append(float(count) / images.num_images)
    return scores


def _with_means(figures: Mapping[str, float], source: str) -> dict[str, float]:
    """Add the mean over all types and severities; only of a whole set, so that means compare."""
    shown = dict(figures)
    for path, names in (
        (f"corruption/{source}", CORRUPTIONS),
        (f"corruption/{source}_extra", EXTRA_CORRUPTIONS),
    ):
        cells = [f"corruption/{source}/{name}/{s}" for name in names for s in SEVERITIES]
        if all(cell in figures for cell in cells):
            shown[path] = sum(figures[cell] for cell in cells) / len(cells)
    return shown


def _fingerprint(archive: Path) -> str:
    """Hash what the files of an archive are called, how large they are and when they were made.

    Not their pixels, which are gigabytes. Of folders of pictures, the folders of classes.
    """
    files = [archive] if archive.is_file() else [*archive.glob("*"), *archive.glob("*/*/*")]
    facts = sorted((str(f.relative_to(archive.parent)), f.stat()) for f in files)
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts])
    return hashlib.sha256(text.encode()).hexdigest()


def _tasks(config: BenchConfig) -> list[str]:
    return [task for task in ("generated", "official") if config.corruptions in (task, "both")]


def _archive(dataset: Dataset, config: BenchConfig) -> OfficialCorruptions:
    assert config.archive is not None
    return open_official(config.archive, dataset)


def _kind(label: str, *, column: bool = True) -> FigureKind:
    return FigureKind("Corruptions", label, better="higher", column=column)


CORRUPTED = Part(
    measure=measure_corruptions,
    tasks=_tasks,
    together=lambda opened: opened.images,
    check=lambda dataset, task, config: task == "official" and _archive(dataset, config),
    describe=lambda group, task: f"corruptions, {task}, of {group[0].dataset.name}",
    figures={
        "corruption/generated": _kind("generated"),
        "corruption/generated_clean": _kind("same images, clean"),
        "corruption/generated_extra": _kind("generated, 4 extra"),
        "corruption/official": _kind("official"),
        "corruption/official_extra": _kind("official, 4 extra"),
        "corruption/": _kind("{}", column=False),
    },
)
