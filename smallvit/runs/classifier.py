"""Accuracy of a network on one split, as it stands in results."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.dataset import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.classify import classification_metrics, confusion_matrix, predict_logits
from smallvit.evaluate.yardstick import measure_yardstick
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.monitor import EVAL_BATCH

logger = logging.getLogger("smallvit")
TRAIN_ON = "train it for more passes (--epochs) or with smaller batches (--batch-size)"


def score_classifier(
    backbone: AbstractBackbone, dataset: Dataset, split: str, runtime: Runtime
) -> dict[str, float]:
    """Return top1, top5, nll and n of a classifier on one split."""
    batches = eval_batches(dataset, dataset.splits[split], EVAL_BATCH)
    return classification_metrics(*predict_logits(backbone, batches, autocast=runtime.autocast))


def refuse_chance(scores: Mapping[str, float], dataset: Dataset, *, who: str, remedy: str) -> None:
    """Refuse a teacher whose answers are broken, or no better on validation than one for all.

    Where all validation images are of one class, accuracy on them tells nothing, which is said.

    Args:
        scores: What ``score_classifier`` returns of validation.
        dataset: Its data.
        who: What names the teacher, and which, for messages.
        remedy: What to do.

    Raises:
        DataError: If it answers with NaN or infinite values.
        ConfigError: If it is at chance.
    """
    if not math.isfinite(scores["nll"]):
        raise DataError(f"{who} answers with NaN or infinite values: {remedy}")
    val = dataset.splits["val"]
    chance = val.labels[val.index].bincount().max().item() / len(val)
    if chance == 1:
        logger.warning(
            "%s: all %d validation images are of one class, which cannot tell whether it is better "
            "than chance: add images, or cut with another data.split_seed",
            who,
            len(val),
        )
    elif scores["top1"] <= chance:
        raise ConfigError(
            f"{who} names the right class of {scores['top1']:.2%} of the validation images, no "
            f"more than chance (naming one class always: {chance:.2%}): {remedy}"
        )


def judge_classifier(
    backbone: AbstractBackbone,
    dataset: Dataset,
    runtime: Runtime,
    *,
    stage: str,
    remedy: str = TRAIN_ON,
) -> dict[str, Any]:
    """Hold a trained classifier against naming one class always, on validation.

    It warns where the accuracy is none to go by. Of several processes one may call it.

    Args:
        backbone: The network, with the weights to judge.
        dataset: Its data.
        runtime: Device and precision.
        stage: What trained it.
        remedy: What to do where its accuracy is none to go by.

    Returns:
        What result.json says of it: the key ``yardstick``, with the fields of ``Yardstick`` and its
        ``fault``.
    """
    batches = eval_batches(dataset, dataset.splits["val"], EVAL_BATCH)
    logits, labels = predict_logits(backbone, batches, autocast=runtime.autocast, alone=True)
    found = measure_yardstick(confusion_matrix(logits, labels).cpu().numpy(), dataset.class_names)
    if found.fault:
        logger.warning("%s, on validation: %s: %s", stage, found.fault, remedy)
    return {"yardstick": asdict(found) | {"fault": found.fault}}
