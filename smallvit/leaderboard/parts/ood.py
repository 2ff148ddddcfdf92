"""Whether a classifier is less sure of foreign images."""

import math
from collections.abc import Iterator, Sequence
from functools import cache

from torch import Tensor

from smallvit.core.console import track
from smallvit.data.dataset import Dataset
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.ood import ood_metrics
from smallvit.evaluate.pixel_classifier import predict_pixels
from smallvit.leaderboard.part import FigureKind, Measured, OpenedRun, Part
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.runs.monitor import EVAL_BATCH
from smallvit.runs.ood_data import ForeignImages, open_foreign

SCORES = {"msp": "MSP", "max_logit": "max logit", "energy": "energy"}


def measure_ood(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Compare the test images with the foreign ones that the task names: one set or several."""
    (opened,) = group

    @cache
    def own() -> Tensor:
        return opened.predict("test", runtime)[0]

    def measure(foreign: ForeignImages) -> Measured:
        number = math.ceil(foreign.num_images / EVAL_BATCH)
        batches = track(foreign.batches(EVAL_BATCH), f"classifying {foreign.name}", number)
        logits = predict_pixels(opened.classifier, batches, autocast=runtime.autocast)
        figures = {}
        for metric, value in ood_metrics(own(), logits).items():
            score, _, kind = metric.rpartition("_")
            figures[f"ood/{kind}/{score}/{foreign.name}"] = value
        how = (
            f"{len(own()):,} test images against {foreign.num_images:,} of {foreign.name}; FPR@95: "
            "part of the foreign images that score no lower than 95 % of the own ones do."
        )
        return {"figures": figures, "protocol": {f"OOD, {foreign.name}": how}}

    found = []
    for foreign in open_sets(opened.dataset, task, config):
        key = {"images": foreign.fingerprint, "n": foreign.num_images, "seed": config.seed}
        kept = opened.kept(f"ood-{foreign.name}", runtime, key)
        found.append(kept.read_or(lambda foreign=foreign: measure(foreign)))
    return [found]


def open_sets(dataset: Dataset, task: str, config: BenchConfig) -> list[ForeignImages]:
    """Open foreign images, as many as there are test images at most."""
    return open_foreign(task, dataset, seed=config.seed, most=len(dataset.splits["test"]))


def _kinds() -> Iterator[tuple[str, FigureKind]]:
    for score, label in SCORES.items():
        shown = score == "msp"
        auroc = FigureKind("OOD", f"{{}} AUROC, {label}", better="higher", column=shown)
        yield f"ood/auroc/{score}/", auroc
        fpr95 = FigureKind("OOD", f"{{}} FPR@95, {label}", better="lower", column=False)
        yield f"ood/fpr95/{score}/", fpr95


OOD = Part(
    measure=measure_ood,
    tasks=lambda config: config.ood,
    check=open_sets,
    figures=dict(_kinds()),
)
