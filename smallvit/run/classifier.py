"""Accuracy of a network on one split, as it stands in results."""

from smallvit.data.loader import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.classify import classification_metrics, predict_logits
from smallvit.models.tokens import AbstractBackbone
from smallvit.run.monitor import EVAL_BATCH


def score_classifier(
    backbone: AbstractBackbone, dataset: Dataset, split: str, runtime: Runtime
) -> dict[str, float]:
    """Return top1, top5, nll and n of a classifier on one split."""
    batches = eval_batches(dataset, dataset.splits[split], EVAL_BATCH)
    return classification_metrics(*predict_logits(backbone, batches, autocast=runtime.autocast))
