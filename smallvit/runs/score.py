"""Scoring a finished run on a held-out split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallvit.core.alone import alone
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_run
from smallvit.data.dataset import Dataset, class_counts
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.evaluate.config import Readout
from smallvit.evaluate.linear_probe import linear_top1
from smallvit.evaluate.readout import check_readout, describe_readout, own_readout
from smallvit.inference.export import read_export
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.registry import features_of
from smallvit.runs.classifier import judge_classifier
from smallvit.runs.data import require_labels
from smallvit.runs.monitor import Monitor
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
    run, stage = _open_for(path, probed=knn or linear, readout=readout)
    runtime = open_runtime(runtime_config or RuntimeConfig())
    if stage == "segment":
        return RunScores(metrics=score_segmentation(run, split, runtime, place=place))
    # Of the probes: a bank of labelled images, and what is watched beside it.
    needed = (split, *(("labelled", "val") if knn or linear else ()))
    backbone, dataset = open_scored(run, runtime, needed, place=place)
    if known := check_scored(run, dataset, split):
        logger.warning("%s", known)
    config, part = recipe_of(run).pretrain, dataset.splits[split]
    counts = class_counts(part, dataset.num_classes)
    commonest = {"commonest": max(counts) / len(part)}
    taken, reads, fault = None, None, ""
    scores: dict[str, float] = {"n": len(part)}
    if stage != "pretrain":
        taken = readout or own_readout(backbone)
        check_readout(backbone, taken)
        reads = describe_readout(backbone, taken)
        metrics, yardstick = judge_classifier(backbone, dataset, split, runtime, readout=readout)
        fault = yardstick.fault
        scores = {"top1": metrics["top1"], "mean_per_class": yardstick.mean_per_class}
        scores |= commonest | metrics
    if knn or linear:
        features = features_of(config.method) if stage == "pretrain" else "pooled"
        monitor = Monitor(backbone, dataset, runtime, config.monitor, features=features)
        if knn:
            scores["knn"] = monitor.score_knn(part)
        if linear:
            bank = monitor.extract(dataset.splits["labelled"])
            scores["linear"] = linear_top1(*bank, *monitor.extract(part))
    scores |= commonest
    return RunScores(
        metrics=scores,
        commonest=dataset.class_names[counts.index(max(counts))],
        fault=fault,
        readout=taken,
        reads=reads,
    )


def _open_for(path: Path, *, probed: bool, readout: Readout | None) -> tuple[Run, str]:
    """Open a run with its stage, and refuse what does not go together with that.

    Raises:
        ConfigError: If it has no network, or none that what is asked for can be read from.
    """
    run = open_run(path)
    stage = run.result["stage"]
    no_classifier = f"{path} is a pretrain run without a classifier"
    if stage == "label":
        teacher = run.recipe.get("label", {}).get("teacher")
        which = f", {teacher}" if teacher else ""
        raise ConfigError(f"{path} holds score maps, no network: score its teacher{which}")
    if stage == "segment" and (probed or readout is not None):
        raise ConfigError(f"{path} is a segment run: leave --knn, --linear and --readout out")
    if stage == "pretrain" and not probed:
        raise ConfigError(f"{no_classifier}: add --knn or --linear")
    if stage == "pretrain" and readout is not None:
        raise ConfigError(f"{no_classifier}: leave --readout {readout} out")
    return run, stage
