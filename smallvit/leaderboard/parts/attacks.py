"""Accuracy under attack."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smallvit.core.console import track
from smallvit.data.dataset import Split
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.attacks import robust_correct
from smallvit.evaluate.autoattack import autoattack, autoattack_version
from smallvit.evaluate.pixel_classifier import PixelClassifier, pixel_batches
from smallvit.leaderboard.part import FigureKind, Measured, OpenedRun, Part, subset_of
from smallvit.leaderboard.protocol import BenchConfig

ATTACK_BATCH = 250
NOT_TRAINED_FOR = "no row was trained against attacks"
logger = logging.getLogger("smallvit")


def measure_attack(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Attack a classifier in float32, whatever ``runtime`` says; the task is the attack."""
    (opened,) = group
    split = subset_of(opened.test, config)
    # Within one call PGD's accuracy cannot rise with eps, so all eps belong to the key.
    key: dict[str, Any] = {"eps": sorted(config.eps), "n": len(split), "seed": config.seed}
    if task == "pgd":
        key |= {"steps": config.pgd_steps, "restarts": config.pgd_restarts}
    elif task == "autoattack":
        key["version"] = autoattack_version()
    return [[opened.kept(task, None, key).read_or(lambda: _measure(opened, split, task, config))]]


def _measure(opened: OpenedRun, split: Split, attack: str, config: BenchConfig) -> Measured:
    start = time.monotonic()
    if attack == "autoattack":
        correct, how = _run_autoattack(opened.classifier, split, config)
    else:
        correct, how = _run_own(opened, split, attack, config)
    logger.info("%s of %s: %.0f s", attack, opened.run.path, time.monotonic() - start)
    return {
        "figures": {
            f"attack/{attack}/{eps:g}": right.double().mean().item()
            for eps, right in correct.items()
        },
        "protocol": {
            f"Attacks, {attack}": f"{how} L-infinity, in pixels, float32; {NOT_TRAINED_FOR}."
        },
    }


def _run_own(
    opened: OpenedRun, split: Split, attack: str, config: BenchConfig
) -> tuple[dict[float, Tensor], str]:
    """Return whether images are still right, by the size of the change, and how it was measured."""
    assert attack in ("fgsm", "pgd")
    # Of a part of the images, the accuracy without a change is another than that of all.
    levels = [0.0] * (len(split) < len(opened.test)) + list(config.eps)
    correct = robust_correct(
        opened.classifier,
        track(pixel_batches(split, ATTACK_BATCH), attack, math.ceil(len(split) / ATTACK_BATCH)),
        attack=attack,
        eps=[eps / 255 for eps in levels],
        steps=config.pgd_steps,
        restarts=config.pgd_restarts,
        seed=config.seed,
    )
    how = f"FGSM, one step, {len(split):,} test images."
    if attack == "pgd":
        restarts = f"{config.pgd_restarts} random start{'s' * (config.pgd_restarts > 1)}"
        how = (
            f"PGD, {config.pgd_steps} steps, {restarts}, worst step kept, {len(split):,} test "
            "images."
        )
    return {eps: correct[eps / 255] for eps in levels}, how


def _run_autoattack(
    classifier: PixelClassifier, split: Split, config: BenchConfig
) -> tuple[dict[float, Tensor], str]:
    number = math.ceil(len(split) / ATTACK_BATCH)
    correct, flags, package = {}, [], ""
    for eps in config.eps:
        standing = []
        batches = pixel_batches(split, ATTACK_BATCH)
        for batch in track(batches, f"AutoAttack at {eps:g}/255", number):
            found = autoattack(classifier, *batch, eps=eps / 255, seed=config.seed)
            standing.append(found.correct)
            flags += found.flags
            package = f"{found.package}, {' + '.join(found.attacks)}"
        correct[eps] = torch.cat(standing)
    warnings = f" Its warnings: {'; '.join(dict.fromkeys(flags))}." if flags else ""
    return correct, f"AutoAttack of {package}, {len(split):,} test images.{warnings}"


ATTACKS = Part(
    measure=measure_attack,
    tasks=lambda config: config.attacks,
    figures={
        f"attack/{attack}/": FigureKind("Attacks", f"{name} {{}}/255", better="higher")
        for attack, name in (("fgsm", "FGSM"), ("pgd", "PGD"), ("autoattack", "AutoAttack"))
    },
)
