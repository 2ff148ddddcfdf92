"""What supervises the patch tokens of stage 2: a file of score maps, or a teacher."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.console import format_duration
from smallvit.core.errors import ConfigError
from smallvit.core.places import dead_link
from smallvit.core.run_folder import Run, open_classifier
from smallvit.data.files.class_lists import some
from smallvit.engine import forecast
from smallvit.finetuning.online import OnlineTeacher
from smallvit.inference.export import exported_input, read_export, weights_hash
from smallvit.models.measure import measure
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.classifier import judge_classifier, refuse_chance, score_classifier
from smallvit.runs.config import Recipe
from smallvit.runs.data import say_other_grey
from smallvit.runs.init_weights import total_cost
from smallvit.runs.learned import NOTHING, Learned
from smallvit.runs.provenance import check_leak, join_extra_data, other_data
from smallvit.runs.session import Session
from smallvit.teachers.score_maps import open_score_maps
from smallvit.teachers.teacher import Teacher

logger = logging.getLogger("smallvit")
SCORE_MAPS = "score_maps.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenLabels:
    """Where the score maps of a run come from.

    Attributes:
        reader: Returns the stored maps of samples by their position in the labelled split; ``None``
            where none are stored.
        teacher: Makes maps in each step; ``None`` where stored ones are read.
        facts: For result.json: the teacher, what it saw beside the data set, and the cost of the
            runs that the maps were made by, by stage.
        learned: The images that the teacher learned.
    """

    reader: Callable[[Int[Tensor, " B"]], Float[Tensor, "B C h w"]] | None = None
    teacher: OnlineTeacher | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    learned: Learned = NOTHING


def open_token_labels(recipe: Recipe, student: AbstractBackbone, session: Session) -> TokenLabels:
    """Open what the settings of token labeling name.

    Args:
        recipe: Resolved settings.
        student: The network that is to be trained, for the cost of a teacher beside it.
        session: Images and device.

    Raises:
        ConfigError: If nothing is named, or the teacher is of other classes or data.
        DataError: If the file or run is missing, broken or of other data.
    """
    config, dataset, allow_leak = recipe.finetune, session.dataset, recipe.data.allow_leak
    if not config.token_label.token_weight and config.token_label.cls_target == "label":
        logger.warning(
            "token_label.token_weight 0 with token_label.cls_target label: the maps teach nothing, "
            "set cls_target pooled or blend"
        )
    if config.token_label.source == "ema":
        average = {"model": "running average of the student", "source": "ema"}
        return TokenLabels(facts={"teacher": average, "extra_data": "none", "upstream": {}})
    if config.token_label.source == "online":
        return _open_online(recipe, student, session)
    if config.score_maps is None:
        raise ConfigError("token labeling needs --score-maps FILE or --teacher RUN")
    path = _find_maps(config.score_maps)
    maps, header = open_score_maps(path, dataset)
    extra_data, learned = header.extra_data, NOTHING
    upstream: dict[str, dict[str, float]] = {}
    if (path.parent / "result.json").is_file():
        label_run = Run(path.parent)
        upstream = total_cost(label_run)
        seen = other_data(label_run, dataset, "--score-maps", allow_leak=allow_leak)
        extra_data, learned = join_extra_data(seen.extra_data, extra_data), seen.learned
    extra_data = check_leak(
        extra_data, dataset.name, allow=allow_leak, option=f"--score-maps {path}"
    )
    teacher = {
        "model": header.teacher,
        "weights": header.teacher_hash,
        "val_top1": header.teacher_val_top1,
        "extra_data": extra_data,
    }
    return TokenLabels(
        reader=maps.to(session.runtime.device).dense,
        facts={"teacher": teacher, "extra_data": extra_data, "upstream": upstream},
        learned=learned,
    )


def _find_maps(path: Path) -> Path:
    """Return the file of score maps that was named by itself or by its run.

    Raises:
        ConfigError: If there is none.
    """
    named, file = f"--score-maps {path}", path / SCORE_MAPS if path.is_dir() else path
    if file.is_file():
        return file
    stage = Run(path).result.get("stage") if (path / "result.json").is_file() else None
    if stage in ("teacher", "finetune"):
        raise ConfigError(
            f"{named} is a {stage} run: `smallvit label --teacher {path}` writes its maps"
        )
    if stage == "label":
        raise ConfigError(
            f"{named} has no {SCORE_MAPS}: smallvit label --resume {path} writes them"
        )
    what = "holds no score maps" if path.exists() else "is not there"
    raise ConfigError(f"{named} {dead_link(path) or what}: smallvit label writes them")


def _open_online(recipe: Recipe, student: AbstractBackbone, session: Session) -> TokenLabels:
    if recipe.finetune.teacher is None:
        raise ConfigError("token_label.source online needs --teacher RUN")
    annotator = open_annotator(recipe.finetune.teacher, recipe, session)
    size = session.dataset.image_size
    logger.info(
        "online teacher: %.1f million multiply-adds an image in each step, beside the %.1f of a "
        "step of the student (three forward passes' worth); stored maps cost none",
        measure(annotator.teacher.backbone, size).macs / 1e6,
        3 * measure(student, size).macs / 1e6,
    )
    teacher = {
        "model": annotator.run.result["model"],
        "run": str(annotator.run.path),
        "source": "online",
        "weights": annotator.weights,
        "val_top1": annotator.scores["val"],
        "extra_data": annotator.extra_data,
    }
    return TokenLabels(
        teacher=OnlineTeacher(annotator.teacher),
        facts={
            "teacher": teacher,
            "extra_data": annotator.extra_data,
            "upstream": total_cost(annotator.run),
        },
        learned=annotator.learned,
    )


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
            f"{named} knows {len(classes)} classes ({some(classes, 3)}), {dataset.name} has "
            f"{dataset.num_classes} ({some(dataset.class_names, 3)}): train one of these with "
            "smallvit teacher"
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
    scores, yardstick = judge_classifier(backbone, dataset, "val", runtime)
    val_s = time.monotonic() - began
    remedy = "train it longer or take another one"
    refuse_chance(scores["nll"], yardstick, who=named, remedy=remedy)
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
