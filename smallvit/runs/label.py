"""Writing a teacher's score maps."""

import logging
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset, Split, even_positions
from smallvit.data.views import eval_batches
from smallvit.engine.log import TrainLog
from smallvit.engine.signals import note_signals, stopped
from smallvit.inference.alignment import draw_alignment
from smallvit.parallel.launch import refuse_several
from smallvit.runs.config import Call, LabelConfig, Recipe
from smallvit.runs.data import require_labels
from smallvit.runs.session import Session, open_session, working_run
from smallvit.runs.token_labels import SCORE_MAPS, Annotator, open_annotator
from smallvit.teachers.score_maps import (
    Parts,
    ScoreMapHeader,
    ScoreMaps,
    read_score_maps,
    write_score_maps,
)
from smallvit.teachers.teacher import TOLERANCE, Teacher, spot_check

logger = logging.getLogger("smallvit")
PARTS = "parts"
ALL_CLASSES = 10  # up to so many classes, every one is listed
PART_IMAGES = 2048  # of a part on disk: what a kill can cost
CHECKED_IMAGES = 10  # computed again
DRAWN_IMAGES = 6


def run_label(recipe: Recipe, call: Call) -> Run | None:
    """Write the score maps of the labelled training split, or go on with it.

    A run that is continued writes the same file, bit for bit, as without the interruption.

    Args:
        recipe: Resolved settings; ``label.teacher`` names the teacher's run.
        call: Where to, and whether at all.

    Returns:
        The run with ``score_maps.safetensors`` in it; ``None`` after a dry run.

    Raises:
        ConfigError: If there is no teacher, it is of other data, classes or splits, it guesses, or
            settings differ from those of the run to continue.
        DataError: If the teacher's run or the data is missing or broken, or its maps are.
        InterruptedRunError: After SIGTERM or SIGINT, once what was made is saved.
    """
    config = recipe.label
    refuse_several("labeling")
    with open_session(recipe, "label", call) as session:
        dataset, runtime = session.dataset, session.runtime
        require_labels(dataset, "`smallvit label`")
        if config.teacher is None:
            raise ConfigError("no teacher named: give --teacher RUN; 'smallvit teacher' trains one")
        annotator = open_annotator(
            config.teacher, recipe, session, temperature=config.temperature, flip=config.flip
        )
        if call.dry_run:
            images, _ = eval_batches(dataset, dataset.splits["labelled"], config.batch_size)[0]
            with runtime.autocast():
                ScoreMaps.from_batch(annotator.teacher(images), 1)
            logger.info("dry run of label: settings, data, teacher and one batch are fine")
            return None
        result = annotator.run.result
        cost = {key: result[key] for key in ("samples_seen", "wall_s")}
        facts = {
            "stage": "label",
            "dataset": dataset.name,
            "model": result["model"],
            "seed": recipe.seed,
            "upstream": {**result.get("upstream", {}), "teacher": cost},
            "teacher": {"run": str(annotator.run.path), "model": result["model"]},
            "extra_data": annotator.extra_data,
        }
        identity = {
            "teacher": annotator.weights,
            "images": dataset.fingerprint,
            "training split": dataset.split_hashes["labelled"],
        }
        with (
            working_run(session, facts, learns="nothing", learned=annotator.learned) as run,
            note_signals() as received,  # during the checks after the last batch it waits for them
        ):
            folder, record = run
            parts = Parts(folder / PARTS, identity, dataset.num_classes)
            _label(annotator.teacher, session, config, parts, received)
            maps = _check_and_write(folder, parts, annotator, session, config)
            record |= _outcome(maps, parts, annotator, dataset, config.batch_size)
            _draw(folder, maps, dataset, annotator, recipe.seed)
            parts.remove()
        return Run(folder)


def _outcome(
    maps: ScoreMaps, parts: Parts, annotator: Annotator, dataset: Dataset, batch_size: int
) -> dict[str, Any]:
    """Say what was written; return what result.json says of it."""
    labelled, scores = dataset.splits["labelled"], annotator.scores
    images_per_s = len(labelled) / max(parts.wall_s, 1e-9)
    metrics = {
        "train/teacher_top1": scores["labelled"],
        "val/teacher_top1": scores["val"],
        "train/pooled_agreement": _pooled_agreement(maps, labelled, batch_size),
    }
    logger.info(
        "score maps of %d images, %d of %d classes a place on a %dx%d grid, %.0f images/s; "
        "teacher: train %.2f%%, val %.2f%%; pooled map agrees with the label on %.2f%%",
        len(labelled),
        maps.prob.shape[1],
        dataset.num_classes,
        *maps.prob.shape[2:],
        images_per_s,
        *(100 * value for value in metrics.values()),
    )
    return {
        "samples_seen": len(labelled),
        "wall_s": parts.wall_s,
        "images_per_s": images_per_s,
        "metrics": metrics,
    }


def _label(
    teacher: Teacher, session: Session, config: LabelConfig, parts: Parts, received: Sequence[int]
) -> None:
    """Label the images that no part holds yet; parts end where batches do."""
    dataset, size = session.dataset, config.batch_size
    labelled = dataset.splits["labelled"]
    if parts.done >= len(labelled):
        return
    top_k = config.top_k or (dataset.num_classes if dataset.num_classes <= ALL_CLASSES else 5)
    num_batches, first = math.ceil(len(labelled) / size), math.ceil(parts.done / size)
    start = lap = time.monotonic()
    pending: list[ScoreMaps] = []
    labeled_now = 0
    with TrainLog(None, "label", num_batches, first) as log:
        batches = eval_batches(dataset, labelled.pick(slice(parts.done, None)), size)
        for number, (images, _) in enumerate(batches, start=first + 1):
            try:
                with session.runtime.autocast():
                    pending.append(ScoreMaps.from_batch(teacher(images), top_k))
            except DataError:
                parts.remove()  # they are of the same teacher
                raise
            labeled_now += len(images)
            last, stop, now = number == num_batches, bool(received), time.monotonic()
            if last or stop or len(pending) * size >= PART_IMAGES:
                parts.write(pending, now - lap)
                pending, lap = [], now
            log.move(number)
            if log.is_due:
                log.say({"perf/images_per_s": labeled_now / max(now - start, 1e-9)})
            if stop and not last:
                raise stopped(
                    received,
                    f"after image {parts.done} of {len(labelled)}, maps saved: continue with "
                    f"smallvit label --resume {shlex.quote(str(parts.folder.parent))}",
                )


def _check_and_write(
    folder: Path, parts: Parts, annotator: Annotator, session: Session, config: LabelConfig
) -> ScoreMaps:
    """Write the file, read it back, compare some maps with the teacher's, and put it in place."""
    dataset, runtime = session.dataset, session.runtime
    maps = parts.join()
    header = ScoreMapHeader(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        split_hash=dataset.split_hashes["labelled"],
        class_names=dataset.class_names,
        grid=(maps.prob.shape[2], maps.prob.shape[3]),
        image_size=dataset.image_size,
        teacher=annotator.run.result["model"],
        teacher_hash=annotator.weights,
        teacher_train_top1=annotator.scores["labelled"],
        teacher_val_top1=annotator.scores["val"],
        extra_data=annotator.extra_data,
        temperature=config.temperature,
        flip=config.flip,
    )
    unchecked = parts.folder / SCORE_MAPS
    write_score_maps(unchecked, maps, header)
    maps, _ = read_score_maps(unchecked)
    labelled = dataset.splits["labelled"]
    position = even_positions(labelled, CHECKED_IMAGES)
    images = (image for image, _ in eval_batches(dataset, labelled.pick(position), 1))
    worst = spot_check(annotator.teacher, images, maps, position, autocast=runtime.autocast)
    # Logits differ by rounding; a temperature below 1 makes more of it.
    tolerance = TOLERANCE[runtime.precision] / min(config.temperature, 1.0)
    if not worst <= tolerance:
        parts.remove()
        raise DataError(
            f"the score maps of {folder} are not what the teacher says of the same images: a "
            f"probability differs by {worst:.3g}, {tolerance:.3g} is rounding; they were removed: "
            "label again, and look for parts or images that changed meanwhile"
        )
    unchecked.replace(folder / SCORE_MAPS)
    logger.info("%d maps computed again differ by %.1e at most", len(position), worst)
    return maps


def _pooled_agreement(maps: ScoreMaps, labelled: Split, batch_size: int) -> float:
    """Return the share of images whose label is the top class of their map's mean."""
    positions = torch.arange(len(labelled)).split(batch_size)
    pooled = [maps.dense(each).mean(dim=(2, 3)).argmax(dim=1) for each in positions]
    labels = labelled.labels[labelled.index].cpu()
    return (torch.cat(pooled) == labels).float().mean().item()


def _draw(folder: Path, maps: ScoreMaps, dataset: Dataset, annotator: Annotator, seed: int) -> None:
    labelled = dataset.splits["labelled"]
    position = even_positions(labelled, DRAWN_IMAGES)
    shown = labelled.pick(position)
    (folder / "plots").mkdir(exist_ok=True)
    draw_alignment(
        folder / "plots" / "alignment.png",
        shown.take().cpu(),
        maps.dense(position),
        shown.labels[shown.index].cpu(),
        dataset.class_names,
        hflip=dataset.hflip,
        seed=seed,
        title=f"{dataset.name}: score maps of {annotator.run.result['model']}",
    )
