"""Opening the teacher that labels patches: who it is, what it saw, and whether it is any good."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from smallvit.core.console import format_duration
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_classifier
from smallvit.engine import forecast
from smallvit.inference.export import exported_input, read_export, weights_hash
from smallvit.runs.classifier import refuse_chance, score_classifier
from smallvit.runs.config import Recipe
from smallvit.runs.data import say_other_grey
from smallvit.runs.learned import Learned
from smallvit.runs.provenance import other_data
from smallvit.runs.session import Session
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
    path: Path, recipe: Recipe, session: Session, *, temperature: float = 1.0, flip: bool = False
) -> Annotator:
    """Open a teacher; refuse one of other data, classes or splits, and one that guesses.

    Args:
        path: Run of the teacher.
        recipe: Resolved settings.
        session: Device, and what it is to label.
        temperature: What its logits are divided by.
        flip: Whether its maps are averaged with those of mirrored images.

    Raises:
        ConfigError: If it cannot label this data, or is no better than chance.
        DataError: If its run is missing or broken.
    """
    run, dataset, runtime = open_classifier(path, "--teacher"), session.dataset, session.runtime
    named, data = f"--teacher {run.path}", run.env["dataset"]
    classes = tuple(data["class_names"])
    if classes != dataset.class_names:
        raise ConfigError(
            f"{named} knows {len(classes)} classes ({', '.join(classes[:3])}, ...), "
            f"{dataset.name} has {dataset.num_classes} ({', '.join(dataset.class_names[:3])}, "
            "...): train one of these with smallvit teacher"
        )
    say_other_grey(run, dataset, "--teacher")
    seen = other_data(run, dataset, "--teacher", allow_leak=recipe.data.allow_leak)
    if seen.foreign:
        raise ConfigError(
            f"{named} was trained on other images ({data['name']}) than {dataset.name}: train one, "
            f"or adopt it with smallvit teacher --from {run.path}"
        )
    size = exported_input(run.path / "export").image_size
    if size != dataset.image_size:
        raise ConfigError(
            f"{named} was trained on images of {size} px, these have {dataset.image_size}: set "
            f"data.image_size {size}, train one, or adopt it with smallvit teacher "
            f"--from {run.path} --data.image-size {dataset.image_size}"
        )
    if flip and not dataset.hflip:
        raise ConfigError(
            f"label.flip averages over mirrored images, but those of {dataset.name} do not keep "
            "their class: leave it out, or set data.hflip true if they do"
        )
    backbone = read_export(run.path / "export").to(runtime.device)
    teacher = Teacher(backbone, temperature=temperature, flip=flip)
    began = time.monotonic()
    scores = score_classifier(backbone, dataset, "val", runtime)
    val_s = time.monotonic() - began
    refuse_chance(scores, dataset, who=named, remedy="train it longer or take another one")
    # What it is to label is scored first and then labelled, twice where mirrored as well.
    labelled = len(dataset.splits["labelled"])
    whole_s = val_s * labelled * (3 if flip else 2) / max(len(dataset.splits["val"]), 1)
    if whole_s >= forecast.WORTH_SAYING_S:
        logger.info("label: about %s for %d images", format_duration(whole_s), labelled)
    train = score_classifier(backbone, dataset, "labelled", runtime)
    return Annotator(
        run=run,
        teacher=teacher,
        weights=weights_hash(backbone.model, backbone.aux_head),
        extra_data=seen.extra_data,
        scores={"labelled": train["top1"], "val": scores["top1"]},
        learned=seen.learned,
    )
