"""Accuracy and calibration of a classifier on the test images."""

import base64
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from smallvit.engine.runtime import Runtime
from smallvit.evaluate.calibration import calibration_metrics, fit_temperature, reliability_bins
from smallvit.evaluate.classify import (
    classification_metrics,
    confusion_matrix,
    mean_per_class,
    predicted_classes,
)
from smallvit.leaderboard.part import FigureKind, Measured, OpenedRun, Part, unpack_correct
from smallvit.leaderboard.protocol import BenchConfig

EVIDENCE = ("confusion", "reliability", "reliability_scaled")
CALIBRATION = (
    "ECE: 15 bins of equal width of the largest probability. Scaled: logits divided by the "
    "temperature of the lowest NLL on validation. Brier: squared distance, summed over classes."
)
logger = logging.getLogger("smallvit")


def measure_accuracy(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Score classifiers, and keep which images they are right on."""
    (opened,) = group
    logger.info("scoring %s on test", opened.run.path)
    kept = opened.kept("accuracy", runtime, {}, is_whole=_is_whole)
    return [[kept.read_or(lambda: _measure(opened, runtime))]]


def _measure(opened: OpenedRun, runtime: Runtime) -> Measured:
    logits, labels = opened.predict("test", runtime)
    summary = classification_metrics(logits, labels)
    temperature = fit_temperature(*opened.predict("val", runtime))
    calibration = calibration_metrics(logits, labels, temperature=temperature)
    correct = (predicted_classes(logits) == labels).cpu().numpy()
    return {
        "summary": summary,
        "figures": {
            "accuracy/mean_per_class": mean_per_class(logits, labels),
            "accuracy/nll": summary["nll"],
            "accuracy/brier": calibration["brier"],
            "calibration/ece": calibration["ece"],
            "calibration/ece_scaled": calibration["ece_scaled"],
            "calibration/nll_scaled": calibration["nll_scaled"],
            "calibration/temperature": temperature,
        },
        "protocol": {"Calibration": CALIBRATION},
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
        "evidence": {
            "confusion": confusion_matrix(logits, labels).tolist(),
            "reliability": asdict(reliability_bins(logits, labels)),
            "reliability_scaled": asdict(reliability_bins(logits / temperature, labels)),
        },
    }


def _is_whole(measured: Mapping[str, Any]) -> bool:
    share = unpack_correct(measured).mean()
    return measured["evidence"].keys() >= set(EVIDENCE) and math.isclose(
        share, measured["summary"]["top1"], abs_tol=1e-9
    )


ACCURACY = Part(
    measure=measure_accuracy,
    is_required=True,
    figures={
        "accuracy/mean_per_class": FigureKind("Accuracy", "mean per class", better="higher"),
        "accuracy/nll": FigureKind("Calibration", "NLL", "nats", "lower"),
        "accuracy/brier": FigureKind("Calibration", "Brier", "ratio", "lower"),
        "calibration/ece": FigureKind("Calibration", "ECE", better="lower"),
        "calibration/ece_scaled": FigureKind("Calibration", "ECE, scaled", better="lower"),
        "calibration/nll_scaled": FigureKind("Calibration", "NLL, scaled", "nats", "lower"),
        "calibration/temperature": FigureKind("Calibration", "temperature", "ratio"),
    },
)
