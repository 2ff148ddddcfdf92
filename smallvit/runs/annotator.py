"""Opening the teacher that labels patches: who it is, what it saw, and whether it is any good."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from smallvit.core.console import format_duration
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_classifier
from smallvit.data.dataset import Dataset
from smallvit.engine import forecast
from smallvit.engine.runtime import Runtime
from smallvit.inference.export import exported_input, read_export, weights_hash
from smallvit.runs.classifier import refuse_chance, score_classifier
from smallvit.runs.data import say_other_grey
from smallvit.runs.learned import Learned
from smallvit.runs.provenance import other_data
from smallvit.teachers.teacher import Teacher

logger = logging.getLogger("smallvit")


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """A teacher that may label a dataset.

    Attributes:
        run: Its run.
        teacher: The network, on the device.
        weights: SHA-256 of its weights.
        extra_data: What else it has seen.
        scores: Its top-1 accuracy by split, in [0, 1].
        learned: The images that it and all it builds on learned.
    """

    run: Run
    teacher: Teacher
    weights: str
    extra_data: str
    scores: dict[str, float]
    learned: Learned


def open_annotator(
    path: Path,
    dataset: Dataset,
    runtime: Runtime,
    *,
    temperature: float = 1.0,
    flip: bool = False,
    allow_leak: bool = False,
) -> Annotator:
    """Open a teacher; refuse one of other data, classes or splits, and one that guesses.

    Args:
        path: Run of the teacher.
        dataset: What it is to label, on the device.
        runtime: Device and precision.
        temperature: What its logits are divided by.
        flip: Whether its maps are averaged with those of mirrored images.
        allow_leak: Take one that may have seen held-out images; it is recorded.

    Raises:
        ConfigError: If it cannot label this data, or is no better than chance.
        DataError: If its run is missing or broken.
    """
    run = open_classifier(path, "--teacher")
    theirs = tuple(run.env["dataset"]["class_names"])
    if theirs != dataset.class_names:
        raise ConfigError(
            f"--teacher {run.path} knows {len(theirs)} classes ({', '.join(theirs[:3])}, ...), "
            f"{dataset.name} has {dataset.num_classes} ({', '.join(dataset.class_names[:3])}, "
            "...): train one of these with smallvit teacher"
        )
    say_other_grey(run, dataset, "--teacher")
    seen = other_data(run, dataset, "--teacher", allow_leak=allow_leak)
    if seen.foreign:
        raise ConfigError(
            f"--teacher {run.path} was trained on other images ({run.env['dataset']['name']}) "
            f"than {dataset.name}: train one, or adopt it with smallvit teacher --from {run.path}"
        )
    size = exported_input(run.path / "export").image_size
    if size != dataset.image_size:
        raise ConfigError(
            f"--teacher {run.path} was trained on images of {size} px, these have "
            f"{dataset.image_size}: set data.image_size {size}, train one, or adopt it with "
            f"smallvit teacher --from {run.path} --data.image-size {dataset.image_size}"
        )
    if flip and not dataset.hflip:
        raise ConfigError(
            f"label.flip averages over mirrored images, but those of {dataset.name} do not keep "
            "their class: leave it out, or set data.hflip true if they do"
        )
    backbone = read_export(run.path / "export").to(runtime.device)
    teacher = Teacher(backbone, temperature=temperature, flip=flip)
    val = dataset.splits["val"]
    began = time.monotonic()
    scores = score_classifier(backbone, dataset, "val", runtime)
    val_s = time.monotonic() - began
    refuse_chance(
        scores,
        dataset,
        who=f"--teacher {run.path}",
        remedy="train it longer or take another one",
    )
    # What it is to label is scored first and then labelled, twice where mirrored as well.
    passes = len(dataset.splits["labelled"]) * (3 if flip else 2) / max(len(val), 1)
    if passes * val_s >= forecast.WORTH_SAYING_S:
        logger.info(
            "label: about %s for %d images",
            format_duration(passes * val_s),
            len(dataset.splits["labelled"]),
        )
    train = score_classifier(backbone, dataset, "labelled", runtime)
    return Annotator(
        run=run,
        teacher=teacher,
        weights=weights_hash(backbone.model, backbone.aux_head),
        extra_data=seen.extra_data,
        scores={"labelled": train["top1"], "val": scores["top1"]},
        learned=seen.learned,
    )
