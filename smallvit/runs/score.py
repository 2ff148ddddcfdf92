"""Scoring a finished run on a held-out split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallvit.core.alone import alone
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_run
from smallvit.data.dataset import Dataset
from smallvit.data.views import eval_batches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.evaluate.classify import classification_metrics, confusion_matrix, predict_logits
from smallvit.evaluate.config import Readout
from smallvit.evaluate.knn import extract_features
from smallvit.evaluate.linear_probe import linear_top1
from smallvit.evaluate.readout import check_readout, describe_readout, own_readout
from smallvit.evaluate.yardstick import measure_yardstick
from smallvit.inference.export import read_export
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.registry import features_of
from smallvit.runs.data import require_labels
from smallvit.runs.monitor import EVAL_BATCH, Monitor
from smallvit.runs.moved import open_run_data, recipe_of
from smallvit.runs.provenance import check_scored
from smallvit.runs.segment import score_segmentation

logger = logging.getLogger("smallvit")
HeldOut = Literal["val", "test"]


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """What one run scored.

    Attributes:
        metrics: ``top1``, ``top5``, ``nll`` and ``mean_per_class`` of its classifier, ``n``,
            ``knn`` and ``linear``, those that it has; and ``commonest``, what naming the commonest
            class of the split for every image would score.
        commonest: That class; ``None`` of a segmentation.
        fault: Why the accuracy is none to go by; empty where it may be.
        readout: What the logits of its classifier were made of; ``None`` without one.
        reads: That in words, with the classifier of tokens that it uses.
    """

    metrics: dict[str, float]
    commonest: str | None = None
    fault: str = ""
    readout: Readout | None = None
    reads: str | None = None


def open_scored(
    run: Run, runtime: Runtime, needed: Sequence[str], *, place: Path | str | None = None
) -> tuple[AbstractBackbone, Dataset]:
    """Load a run's network and the data that it was trained on, on the device.

    Args:
        run: A finished run.
        runtime: Device.
        needed: Splits whose images are needed.
        place: Where the data is; ``None`` is where it was.

    Raises:
        DataError: If the images that the run saw are not there.
    """
    backbone = read_export(run.path / "export").to(runtime.device)
    dataset = open_run_data(run, needed, place=place)
    require_labels(dataset, "scoring")
    return backbone, dataset.to(runtime.device)


@alone()
def evaluate_run(
    path: Path,
    *,
    split: HeldOut = "val",
    knn: bool = False,
    linear: bool = False,
    readout: Readout | None = None,
    place: Path | str | None = None,
    runtime_config: RuntimeConfig | None = None,
) -> RunScores:
    """Score one run: its classifier where it has one, and probes of its features where asked.

    Args:
        path: Run folder.
        split: Validation or test.
        knn: Weighted vote of the nearest labelled training images.
        linear: Logistic regression on the labelled training images.
        readout: What to make the logits of; ``None`` is what the network itself returns.
        place: Where the run's data is; ``None`` is where it was.
        runtime_config: Device and precision; ``None`` is the automatic choice.

    Raises:
        ConfigError: If a run without a classifier is scored without a probe, or by a readout; or
            if that reads a token head that nothing trained.
    """
    run = open_run(path)
    runtime = open_runtime(runtime_config or RuntimeConfig())
    if run.result["stage"] == "label":
        teacher = run.recipe.get("label", {}).get("teacher")
        raise ConfigError(
            f"{path} holds score maps, no network: score its teacher"
            + (f", {teacher}" if teacher else "")
        )
    if run.result["stage"] == "segment":
        if knn or linear or readout is not None:
            raise ConfigError(f"{path} is a segment run: leave --knn, --linear and --readout out")
        scores = score_segmentation(path, split=split, place=place, runtime_config=runtime_config)
        return RunScores(metrics=scores)
    classifies = run.result["stage"] != "pretrain"
    if not (classifies or knn or linear):
        raise ConfigError(f"{path} is a pretrain run without a classifier: add --knn or --linear")
    if readout is not None and not classifies:
        raise ConfigError(
            f"{path} is a pretrain run without a classifier: leave --readout {readout} out"
        )
    # Of the probes: a bank of labelled images, and what is watched beside it.
    needed = (split, *(("labelled", "val") if knn or linear else ()))
    backbone, dataset = open_scored(run, runtime, needed, place=place)
    if said := check_scored(run, dataset, split):
        logger.warning("%s", said)
    recipe = recipe_of(run)
    features = "pooled" if classifies else features_of(recipe.pretrain.method)
    batches = eval_batches(dataset, dataset.splits[split], EVAL_BATCH)
    scores: dict[str, float] = {}
    taken, reads, fault = None, None, ""
    if classifies:
        taken = readout or own_readout(backbone)
        check_readout(backbone, taken)
        reads = describe_readout(backbone, taken)
        answers = predict_logits(backbone, batches, autocast=runtime.autocast, readout=readout)
        confusion = confusion_matrix(*answers).cpu().numpy()
        yardstick = measure_yardstick(confusion, dataset.class_names)
        fault = yardstick.fault
        metrics = classification_metrics(*answers)
        scores["top1"] = metrics.pop("top1")
        scores["mean_per_class"] = yardstick.mean_per_class
        scores |= {"commonest": yardstick.commonest_share, **metrics}
    else:
        scores["n"] = len(dataset.splits[split])
    if knn:
        monitor = Monitor(backbone, dataset, runtime, recipe.pretrain.monitor, features=features)
        scores["knn"] = monitor.score_knn(dataset.splits[split])
    if linear:
        sides = [
            extract_features(
                backbone,
                eval_batches(dataset, dataset.splits[part], EVAL_BATCH),
                autocast=runtime.autocast,
                kind=features,
            )
            for part in ("labelled", split)
        ]
        scores["linear"] = linear_top1(*sides[0], *sides[1])
    part = dataset.splits[split]
    counts = part.labels[part.index].bincount()
    scores["commonest"] = counts.max().item() / len(part)
    return RunScores(
        metrics=scores,
        commonest=dataset.class_names[int(counts.argmax())],
        fault=fault,
        readout=taken,
        reads=reads,
    )
