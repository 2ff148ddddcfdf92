"""Scores of finished runs on their test split, part by part."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from smallvit.core.errors import DataError, SmallViTError
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.leaderboard import parts
from smallvit.leaderboard.attention import draw_attention
from smallvit.leaderboard.board import Bin, Evidence
from smallvit.leaderboard.part import OpenedRun, Part, unpack_correct
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.moved import MovedError
from smallvit.runs.provenance import check_scored
from smallvit.runs.score import open_scored

logger = logging.getLogger("smallvit")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one run scored.

    Attributes:
        run: The run.
        summary: ``top1``, ``top5`` and ``n`` of its classifier on test.
        figures: All other figures, by the paths of ``figures.kind_of``.
        correct: Whether each test image is classified correctly, in the order of the split.
        evidence: What pictures are drawn of, but for the attention.
        draw_attention: Returns a PNG of where its network looks, drawn before or now.
        protocol: How each group of figures was measured, in words.
        missing: Why a figure that was asked for could not be had, by its path.
    """

    run: Run
    summary: dict[str, float]
    figures: dict[str, float]
    correct: Bool[np.ndarray, " N"]
    evidence: Evidence
    draw_attention: Callable[[], bytes]
    protocol: dict[str, str]
    missing: dict[str, str]


def score_runs(
    runs: Sequence[Run],
    config: BenchConfig,
    *,
    place: Path | str | None = None,
    runtime_config: RuntimeConfig | None = None,
) -> tuple[list[Scores], list[str], SmallViTError | None]:
    """Score runs on their test split by one protocol.

    What was measured before is read again, so an interrupted call goes on where it was.

    Args:
        runs: Finished runs with a classifier.
        config: What to measure.
        place: Where the runs' data is; ``None``, and for runs none of whose images are there, is
            where it was.
        runtime_config: Device and precision; ``None`` is the automatic choice. Attacks are in
            float32 whatever it is.

    Returns:
        The scores; one line for each run, or part of one, that could not be scored; and the error
        of a part that no run has, if there is one.

    Raises:
        SmallViTError: If foreign images or an archive suit none of the runs, before any is scored.
    """
    runtime = open_runtime(runtime_config or RuntimeConfig())
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        logger.warning("%s", line)

    opened = _open_all(runs, runtime, config, place, note)
    tasks = [(part, task) for part in parts.PARTS for task in part.tasks(config)]
    _check_sources(opened, tasks, config)
    unmeasured = None
    for part, task in tasks:
        errors: list[SmallViTError] = []
        groups = _group(opened, part.together)
        for group in groups:
            try:
                found = part.measure(group, task, config, runtime)
            except SmallViTError as error:
                errors.append(error)
                left_out = "left out: " if part.is_required else ""
                note(f"{left_out}{part.describe(group, task)}: {error}")
                if part.is_required:
                    opened = [each for each in opened if each not in group]
                continue
            for each, measured in zip(group, found, strict=True):
                each.measured += measured
        if groups and len(errors) == len(groups):
            unmeasured = errors[0]
    return [_collect(each, runtime) for each in opened], notes, unmeasured


def _open_all(
    runs: Sequence[Run],
    runtime: Runtime,
    config: BenchConfig,
    place: Path | str | None,
    note: Callable[[str], None],
) -> list[OpenedRun]:
    """Open runs; hundreds of one data set hold it once."""
    opened: list[OpenedRun] = []
    shared: dict[Hashable, Dataset] = {}
    for run in runs:
        try:
            backbone, dataset = _open(run, runtime, config, place)
            key = dataset.fingerprint, tuple(dataset.split_hashes.items()), dataset.image_size
            dataset = shared.setdefault(key, dataset)
            opened.append(OpenedRun(run=run, backbone=backbone, dataset=dataset))
        except SmallViTError as error:
            note(f"left out: {error}")
    return opened


def _open(
    run: Run, runtime: Runtime, config: BenchConfig, place: Path | str | None
) -> tuple[AbstractBackbone, Dataset]:
    """Load a run's network and its data, and refuse one that knew labels of its test images."""
    needed = ("test", "val", *(("labelled",) if config.probes else ()))
    try:
        backbone, dataset = open_scored(run, runtime, needed, place=place)
    except MovedError as error:
        if place is None or error.found:
            raise
        logger.info("%s: none of its images are at %s: opened where they were", run.path, place)
        backbone, dataset = open_scored(run, runtime, needed)
    if fault := check_scored(run, dataset, "test"):
        raise DataError(fault)
    return backbone, dataset


def _group(
    opened: Sequence[OpenedRun], key: Callable[[OpenedRun], Hashable]
) -> list[list[OpenedRun]]:
    groups: dict[Hashable, list[OpenedRun]] = {}
    for each in opened:
        groups.setdefault(key(each), []).append(each)
    return list(groups.values())


def _check_sources(
    opened: Sequence[OpenedRun], tasks: Sequence[tuple[Part, str]], config: BenchConfig
) -> None:
    """Open what parts need beside the runs, before hours are spent on the others.

    Raises:
        SmallViTError: If a source suits none of the runs' data sets.
    """
    datasets = [group[0].dataset for group in _group(opened, lambda each: each.images)]
    for part, task in tasks:
        errors: list[SmallViTError] = []
        for dataset in datasets:
            try:
                part.check(dataset, task, config)
            except SmallViTError as error:
                errors.append(error)
        if errors and len(errors) == len(datasets):
            raise errors[0]


def _collect(opened: OpenedRun, runtime: Runtime) -> Scores:
    accuracy = opened.measured[0]
    merged: dict[str, dict[str, Any]] = {"figures": {}, "protocol": {}, "missing": {}}
    for part in opened.measured:
        for key, values in merged.items():
            values |= part.get(key, {})
    evidence = accuracy["evidence"]
    return Scores(
        run=opened.run,
        summary=accuracy["summary"],
        correct=unpack_correct(accuracy),
        evidence=Evidence(
            class_names=opened.dataset.class_names,
            confusion=tuple(tuple(row) for row in evidence["confusion"]),
            reliability=_bins(evidence["reliability"]),
            reliability_scaled=_bins(evidence["reliability_scaled"]),
        ),
        draw_attention=partial(draw_attention, opened, runtime),
        **merged,
    )


def _bins(found: Mapping[str, Sequence[float | None]]) -> tuple[Bin, ...]:
    return tuple(
        Bin(count=int(count or 0), confidence=confidence or 0.0, accuracy=accuracy or 0.0)
        for count, confidence, accuracy in zip(
            found["count"], found["confidence"], found["accuracy"], strict=True
        )
    )
