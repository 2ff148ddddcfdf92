"""Accuracy of a network on one split, as it stands in results."""

import logging
import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.dataset import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.classify import classification_metrics, confusion_matrix, predict_logits
from smallvit.evaluate.yardstick import Yardstick, measure_yardstick
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.monitor import EVAL_BATCH

logger = logging.getLogger("smallvit")
TRAIN_ON = "train it for more passes (--epochs) or with smaller batches (--batch-size)"


def score_classifier(
    backbone: AbstractBackbone, dataset: Dataset, split: str, runtime: Runtime
) -> dict[str, float]:
    """Return top1, top5, nll and n of a classifier on one split."""
    return classification_metrics(*_answers(backbone, dataset, split, runtime))


def judge_classifier(
    backbone: AbstractBackbone, dataset: Dataset, split: str, runtime: Runtime, **how: Any
) -> tuple[dict[str, float], Yardstick]:
    """Return what ``score_classifier`` does, and what the accuracy is held against.

    Args:
        backbone: The network.
        dataset: Its data.
        split: Which images.
        runtime: Device and precision.
        **how: Further arguments of ``predict_logits``.
    """
    answers = _answers(backbone, dataset, split, runtime, **how)
    confusion = confusion_matrix(*answers).numpy(force=True)
    return classification_metrics(*answers), measure_yardstick(confusion, dataset.class_names)


def _answers(
    backbone: AbstractBackbone, dataset: Dataset, split: str, runtime: Runtime, **how: Any
) -> tuple[Tensor, Tensor]:
    batches = eval_batches(dataset, dataset.splits[split], EVAL_BATCH)
    return predict_logits(backbone, batches, autocast=runtime.autocast, **how)


def refuse_chance(nll: float, yardstick: Yardstick, *, who: str, remedy: str) -> None:
    """Refuse a teacher whose answers are broken, or no better on validation than one for all.

    Where all validation images are of one class, accuracy on them tells nothing, which is said.

    Args:
        nll: Its cross-entropy on validation.
        yardstick: Its accuracy there, and what that is held against.
        who: What names the teacher, and which, for messages.
        remedy: What to do.

    Raises:
        DataError: If it answers with NaN or infinite values.
        ConfigError: If it is at chance.
    """
    if not math.isfinite(nll):
        raise DataError(f"{who} answers with NaN or infinite values: {remedy}")
    if yardstick.commonest_share == 1:
        logger.warning(
            "%s: all %d validation images are of one class, which cannot tell whether it is better "
            "than chance: add images, or cut with another data.split_seed",
            who,
            yardstick.n,
        )
    elif yardstick.top1 <= yardstick.commonest_share:
        raise ConfigError(
            f"{who} names the right class of {yardstick.top1:.2%} of the validation images, no "
            f"more than chance (naming one class always: {yardstick.commonest_share:.2%}): {remedy}"
        )


def describe_yardstick(
    yardstick: Yardstick, *, stage: str, remedy: str = TRAIN_ON
) -> dict[str, Any]:
    """Return what result.json says of an accuracy; warn where it is none to go by.

    Args:
        yardstick: The accuracy on validation, and what it is held against.
        stage: What trained the network.
        remedy: What to do where its accuracy is none to go by.
    """
    if yardstick.fault:
        logger.warning("%s, on validation: %s: %s", stage, yardstick.fault, remedy)
    return {"yardstick": asdict(yardstick) | {"fault": yardstick.fault}}
