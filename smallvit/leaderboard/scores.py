"""Scores of finished runs on their test split, part by part, kept beside each run.

Each part is a file in the run's folder ``bench/``, named by the hash of all that it depends on: the
weights, the test images and the settings of that part. So a second call measures only what is
missing, and an interrupted one goes on where it was.
"""

import base64
import hashlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smallvit.core import rng
from smallvit.core.console import track
from smallvit.core.errors import DataError, SmallViTError
from smallvit.core.run_folder import Run, machine, write_json
from smallvit.core.whole_file import replacing
from smallvit.data.dataset import Dataset, Split
from smallvit.data.views import eval_batches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.evaluate.attacks import robust_correct
from smallvit.evaluate.autoattack import autoattack, autoattack_version
from smallvit.evaluate.calibration import (
    calibration_metrics,
    fit_temperature,
    reliability_bins,
)
from smallvit.evaluate.classify import (
    classification_metrics,
    confusion_matrix,
    mean_per_class,
    predict_logits,
    predicted_classes,
)
from smallvit.evaluate.config import NUM_NEIGHBOURS, TEMPERATURE
from smallvit.evaluate.corruptions import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    PROTOCOL,
    SEVERITIES,
    corrupt,
    open_official,
)
from smallvit.evaluate.knn import extract_features, knn_top1
from smallvit.evaluate.linear_probe import linear_top1
from smallvit.evaluate.ood import ood_metrics
from smallvit.evaluate.pixel_classifier import PixelClassifier, pixel_batches, predict_pixels
from smallvit.inference.token_pictures import draw_tokens
from smallvit.leaderboard.board import Bin, Evidence
from smallvit.leaderboard.cost import RESTLESS, ROUNDS, device_name, measure_cost
from smallvit.leaderboard.cost import VERSION as COST_VERSION
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.leaderboard.settings import row_identity
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.monitor import EVAL_BATCH
from smallvit.runs.moved import MovedError
from smallvit.runs.ood_data import ForeignImages, open_foreign
from smallvit.runs.provenance import check_scored
from smallvit.runs.score import open_scored

FORMAT_VERSION = 1
PICTURE_VERSION = 2  # of the attention pictures
ATTACK_BATCH = 250
CORRUPT_BATCH = 2048  # enough for all threads to have a share
PNG = b"\x89PNG\r\n\x1a\n"
PICTURED = 4  # test images of an attention picture
NOT_TRAINED_FOR = "no row was trained against attacks"
logger = logging.getLogger("smallvit")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one run scored.

    Attributes:
        run: The run.
        summary: ``top1``, ``top5`` and ``n`` of its classifier on test.
        figures: All other figures, by the paths of ``figures.FIGURES``.
        correct: Whether each test image is classified correctly, in the order of the split.
        evidence: What pictures are drawn of.
        protocol: How each group of figures was measured, in words.
        missing: Why a figure that was asked for could not be had, by its path.
    """

    run: Run
    summary: dict[str, float]
    figures: dict[str, float]
    correct: Bool[np.ndarray, " N"]
    evidence: Evidence
    protocol: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class _Opened:
    """A run with its network and data on the device."""

    run: Run
    backbone: AbstractBackbone
    dataset: Dataset
    weights: str

    @property
    def test(self) -> Split:
        return self.dataset.splits["test"]

    @property
    def identity(self) -> dict[str, Any]:
        """What the figures of a network and its test images depend on."""
        return {"weights": self.weights, "test": self.run.env["split_hashes"]["test"]}

    @property
    def classifier(self) -> PixelClassifier:
        return PixelClassifier(self.backbone, self.dataset.mean, self.dataset.std)


def score_runs(
    runs: Sequence[Run],
    config: BenchConfig,
    *,
    place: Path | str | None = None,
    runtime_config: RuntimeConfig | None = None,
) -> tuple[list[Scores], list[str], SmallViTError | None]:
    """Score runs on their test split by one protocol.

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

    opened, shared = [], {}
    for run in runs:
        try:
            backbone, dataset = _open(run, runtime, config, place)
            # Hundreds of runs of one data set hold it once.
            key = dataset.fingerprint, tuple(dataset.split_hashes.items()), dataset.image_size
            dataset = shared.setdefault(key, dataset)
            opened.append(_Opened(run, backbone, dataset, _hash_weights(run)))
        except SmallViTError as error:
            note(f"left out: {error}")
    _check_sources(opened, config)
    parts: dict[Path, list[dict[str, Any]]] = {}
    for each in opened:
        logger.info("scoring %s on test", each.run.path)
        try:
            parts[each.run.path] = [_score_accuracy(each, runtime)]
        except SmallViTError as error:
            note(f"left out: {each.run.path}: {error}")
    scored = [each for each in opened if each.run.path in parts]
    unmeasured = None
    for measure in _chosen_parts(config, runtime):
        errors = []
        for each in scored:
            try:
                parts[each.run.path] += measure(each)
            except SmallViTError as error:
                errors.append(error)
                note(f"{each.run.path}: {error}")
        if scored and len(errors) == len(scored):
            unmeasured = errors[0]
    if config.cost:
        for group in _same_networks(scored):
            cost = _score_cost(group, runtime)  # once, also where it is not kept
            for each in group:
                parts[each.run.path].append(cost)
    correct = {path: unpack_correct(found[0]) for path, found in parts.items()}
    for source in ("generated", "official"):
        groups = _same_images(scored) if config.corruptions in (source, "both") else []
        errors = []
        for group in groups:
            try:
                found = _score_corruptions(group, source, config, runtime, correct=correct)
            except SmallViTError as error:
                errors.append(error)
                note(f"corruptions, {source}, of {group[0].dataset.name}: {error}")
                continue
            for each, part in zip(group, found, strict=True):
                parts[each.run.path].append(part)
        if groups and len(errors) == len(groups):
            unmeasured = errors[0]
    rows = {each.run.path: row_identity(each.run) for each in scored}
    pictured = {rows[each.run.path]: each for each in reversed(scored)}
    scores = []
    for each in scored:
        first = pictured[rows[each.run.path]] is each
        attention = _draw_attention(each, runtime) if first else None
        scores.append(_collect(each, parts[each.run.path], attention))
    return scores, notes, unmeasured


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
    if said := check_scored(run, dataset, "test"):
        raise DataError(said)
    return backbone, dataset


def unpack_correct(accuracy: Mapping[str, Any]) -> Bool[np.ndarray, " N"]:
    """Return whether each test image is classified correctly, from the part of the accuracy."""
    packed = np.frombuffer(base64.b64decode(accuracy["correct"], validate=True), dtype=np.uint8)
    return np.unpackbits(packed, count=int(accuracy["summary"]["n"])).astype(bool)


def _check_sources(opened: Sequence[_Opened], config: BenchConfig) -> None:
    """Open what figures need beside the runs, before hours are spent on the others.

    Raises:
        SmallViTError: If a source suits none of the runs' data sets.
    """
    groups = [group[0].dataset for group in _same_images(opened)]
    checks: list[Callable[[Dataset], Any]] = [
        partial(_open_foreign, name, seed=config.seed) for name in config.ood
    ]
    if config.archive is not None:
        checks.append(partial(open_official, config.archive))
    for check in checks:
        errors = []
        for dataset in groups:
            try:
                check(dataset)
            except SmallViTError as error:
                errors.append(error)
        if groups and len(errors) == len(groups):
            raise errors[0]


def _open_foreign(name: str, dataset: Dataset, *, seed: int) -> list[ForeignImages]:
    return open_foreign(name, dataset, seed=seed, most=len(dataset.splits["test"]))


def subset_of(split: Split, size: int | None, seed: int) -> Split:
    """Return the part of a split that is corrupted and attacked: the same for every run."""
    chosen = _subset_positions(split, size, seed)
    return Split(images=split.images, labels=split.labels, index=split.index[chosen])


def _subset_positions(split: Split, size: int | None, seed: int) -> Int[Tensor, " n"]:
    device = split.index.device
    if size is None or size >= len(split):
        return torch.arange(len(split), device=device)
    return rng.permutation(seed, "bench/subset", 0, len(split), device)[:size].sort().values


def _chosen_parts(
    config: BenchConfig, runtime: Runtime
) -> Iterable[Callable[[_Opened], list[dict[str, Any]]]]:
    if config.probes:
        yield partial(_score_probes, runtime=runtime)
    for attack in config.attacks:
        yield partial(_score_attack, attack=attack, config=config)
    for name in config.ood:
        yield partial(_score_ood, name=name, config=config, runtime=runtime)


def _score_accuracy(opened: _Opened, runtime: Runtime) -> dict[str, Any]:
    key = {"precision": _precision(runtime)}
    kept, save = _kept(opened, "accuracy", key, runtime)
    if kept is not None:
        return kept
    logits, labels = _predict(opened, "test", runtime)
    summary = classification_metrics(logits, labels)
    temperature = fit_temperature(*_predict(opened, "val", runtime))
    calibration = calibration_metrics(logits, labels, temperature=temperature)
    correct = (predicted_classes(logits) == labels).cpu().numpy()
    return save(
        {
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
            "protocol": {
                "Calibration": "ECE: 15 bins of equal width of the largest probability. Scaled: "
                "logits divided by the temperature of the lowest NLL on validation. Brier: squared "
                "distance, summed over classes."
            },
            "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
            "evidence": {
                "confusion": confusion_matrix(logits, labels).tolist(),
                "reliability": asdict(reliability_bins(logits, labels)),
                "reliability_scaled": asdict(reliability_bins(logits / temperature, labels)),
            },
        }
    )


def _score_probes(opened: _Opened, *, runtime: Runtime) -> list[dict[str, Any]]:
    key = {"precision": _precision(runtime), "k": NUM_NEIGHBOURS, "temp": TEMPERATURE}
    kept, save = _kept(opened, "probes", key, runtime)
    if kept is not None:
        return [kept]
    sides = []
    for split in ("labelled", "test"):
        part = opened.dataset.splits[split]
        batches = eval_batches(opened.dataset, part, EVAL_BATCH)
        shown = track(batches, f"features of {split}", math.ceil(len(part) / EVAL_BATCH))
        sides.append(extract_features(opened.backbone, shown, autocast=runtime.autocast))
    labelled, test = sides
    knn = knn_top1(*labelled, *test, num_classes=opened.dataset.num_classes)
    bank = len(labelled[1])
    protocol = {
        "Backbone": f"Features that the classifier reads. k-NN: {NUM_NEIGHBOURS} neighbours, "
        f"temperature {TEMPERATURE}, bank of the {bank:,} labelled images; linear probe: logistic "
        "regression on the same."
    }
    figures = {"features/knn": knn, "features/linear": linear_top1(*labelled, *test)}
    return [save({"figures": figures, "protocol": protocol})]


def _score_attack(opened: _Opened, *, attack: str, config: BenchConfig) -> list[dict[str, Any]]:
    split = subset_of(opened.test, config.subset, config.seed)
    # Within one call PGD's accuracy cannot rise with eps, so all eps belong to the key.
    key: dict[str, Any] = {"eps": sorted(config.eps), "n": len(split), "seed": config.seed}
    if attack == "pgd":
        key |= {"steps": config.pgd_steps, "restarts": config.pgd_restarts}
    elif attack == "autoattack":
        key["version"] = autoattack_version()
    kept, save = _kept(opened, attack, key, None)
    if kept is not None:
        return [kept]
    start = time.monotonic()
    images = f"{len(split):,} test images"
    figures: dict[str, float] = {}
    if attack == "autoattack":
        flags, package = [], ""
        number = math.ceil(len(split) / ATTACK_BATCH)
        for eps in config.eps:
            standing = []
            batches = pixel_batches(split, ATTACK_BATCH)
            for batch in track(batches, f"AutoAttack at {eps:g}/255", number):
                found = autoattack(opened.classifier, *batch, eps=eps / 255, seed=config.seed)
                standing.append(found.correct)
                flags += found.flags
                package = f"{found.package}, {' + '.join(found.attacks)}"
            figures[f"attack/autoattack/{eps:g}"] = torch.cat(standing).double().mean().item()
        said = f" Its warnings: {'; '.join(dict.fromkeys(flags))}." if flags else ""
        how = f"AutoAttack of {package}, {images}.{said}"
    else:
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
        for eps in levels:
            figures[f"attack/{attack}/{eps:g}"] = correct[eps / 255].double().mean().item()
        how = f"FGSM, one step, {images}."
        if attack == "pgd":
            restarts = f"{config.pgd_restarts} random start{'s' * (config.pgd_restarts > 1)}"
            how = f"PGD, {config.pgd_steps} steps, {restarts}, worst step kept, {images}."
    logger.info("%s of %s: %.0f s", attack, opened.run.path, time.monotonic() - start)
    protocol = {f"Attacks, {attack}": f"{how} L-infinity, in pixels, float32; {NOT_TRAINED_FOR}."}
    return [save({"figures": figures, "protocol": protocol})]


def _score_ood(
    opened: _Opened, *, name: str, config: BenchConfig, runtime: Runtime
) -> list[dict[str, Any]]:
    own, _ = _predict(opened, "test", runtime)
    parts = []
    for foreign in _open_foreign(name, opened.dataset, seed=config.seed):
        key = {
            "images": foreign.fingerprint,
            "n": foreign.num_images,
            "seed": config.seed,
            "precision": _precision(runtime),
        }
        kept, save = _kept(opened, f"ood-{foreign.name}", key, runtime)
        if kept is None:
            number = math.ceil(foreign.num_images / EVAL_BATCH)
            batches = track(foreign.batches(EVAL_BATCH), f"classifying {foreign.name}", number)
            logits = predict_pixels(opened.classifier, batches, autocast=runtime.autocast)
            figures = {}
            for metric, value in ood_metrics(own, logits).items():
                score, _, kind = metric.rpartition("_")
                figures[f"ood/{kind}/{score}/{foreign.name}"] = value
            kept = save(
                {
                    "figures": figures,
                    "protocol": {
                        f"OOD, {foreign.name}": f"{len(own):,} test images against "
                        f"{foreign.num_images:,} of {foreign.name}; FPR@95: part of the foreign "
                        "images that score no lower than 95 % of the own ones do."
                    },
                }
            )
        parts.append(kept)
    return parts


def _score_cost(group: Sequence[_Opened], runtime: Runtime) -> dict[str, Any]:
    """Return the cost of networks of one architecture: measured once, however many they are."""
    key = {
        "version": COST_VERSION,
        "precision": _precision(runtime),
        "machine": machine(),
        "device_name": device_name(runtime),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    identity = {"architecture": _architecture(group[0])}
    files = [_kept(each, "cost", key, runtime, identity=identity) for each in group]
    measured = next((kept for kept, _ in files if kept is not None), None)
    if measured is None:
        logger.info("timing %s", group[0].run.result["model"])
        measured = _measure_cost(group[0], runtime)
    # A machine that was busy may be quiet the next time.
    if not any(reason.startswith(RESTLESS) for reason in measured["missing"].values()):
        for kept, save in files:
            if kept != measured:
                save(measured)
    return measured


def _measure_cost(opened: _Opened, runtime: Runtime) -> dict[str, Any]:
    cost = measure_cost(opened.backbone, opened.dataset.image_size, runtime)
    figures: dict[str, float] = {"cost/macs": cost.macs}
    missing: dict[str, str] = {}
    if cost.peak_memory_mib is not None:
        figures["cost/peak_memory"] = cost.peak_memory_mib
    paths = {1: ("cost/latency_ms",), 256: ("cost/latency_ms_256", "cost/images_per_s")}
    for batch_size, names in paths.items():
        timing = cost.timings[batch_size]
        if timing.latency_s is None or timing.spread is None:
            missing |= dict.fromkeys(names, timing.reason)
            continue
        figures[f"cost/spread/{batch_size}"] = timing.spread
        for name in names:
            speed = name == "cost/images_per_s"
            figures[name] = batch_size / timing.latency_s if speed else 1000 * timing.latency_s
    protocol = {
        "Cost": f"Forward pass on {machine()}, {cost.device}, {cost.precision}, "
        f"{cost.threads} threads; measured once for all rows of one network, as the median of "
        f"{ROUNDS} rounds in a row after a warm-up, +- half of what the longest is above the "
        "shortest. A dash where rounds differ by more than 20 %: something else was at work."
    }
    return {"figures": figures, "protocol": protocol, "missing": missing}


def _same_networks(opened: Sequence[_Opened]) -> list[list[_Opened]]:
    """Group runs whose networks differ in nothing but their weights."""
    groups: dict[str, list[_Opened]] = {}
    for each in opened:
        groups.setdefault(_architecture(each), []).append(each)
    return list(groups.values())


def _architecture(opened: _Opened) -> str:
    """Hash what the cost of a network depends on: its arguments and the size of its images."""
    config = json.loads((opened.run.path / "export" / "config.json").read_text())
    named = {key: config.get(key) for key in ("architecture", "num_classes", "model_args")}
    said = json.dumps([named, opened.dataset.image_size], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _score_corruptions(
    group: Sequence[_Opened],
    source: str,
    config: BenchConfig,
    runtime: Runtime,
    *,
    correct: Mapping[Path, Bool[np.ndarray, " N"]],
) -> list[dict[str, Any]]:
    """Score networks of the same images together, so that each image is corrupted once.

    Args:
        group: Networks.
        source: ``generated`` or ``official``.
        config: What to measure.
        runtime: Device and precision.
        correct: Whether each test image as it is is classified correctly, by run.
    """
    first = group[0]
    split = subset_of(first.test, config.subset, config.seed)
    # Draws go by the position among the test images, which stand in the order of their contents:
    # files that are renamed are corrupted as before.
    chosen = _subset_positions(first.test, config.subset, config.seed)
    archive = None
    if source == "generated":
        key: dict[str, Any] = {"n": len(split), "seed": config.seed, "generator": PROTOCOL}
        if not torch.equal(chosen, split.index):
            key["draws by"] = "position"
        names, num_images = ALL_CORRUPTIONS, len(split)
        made_by = f"made here ({PROTOCOL}, seed {config.seed}; frost is drawn, not photographed)"
    else:
        assert config.archive is not None
        archive = open_official(config.archive, first.dataset)
        names, num_images = archive.names, len(archive.labels)
        key = {"archive": _fingerprint(archive.path), "names": names, "n": num_images}
        made_by = f"of the published archive {archive.path.name}"
    protocol = {
        f"Corruptions, {source}": f"Mean accuracy of 15 types at 5 severities, {made_by}; "
        f"{num_images:,} test images a type and severity. The 4 extra types are apart."
    }

    def walk(name: str, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        if archive is not None:
            yield from archive.batches(
                name, severity, batch_size=EVAL_BATCH, device=split.index.device
            )
            return
        for position in torch.arange(len(split), device=split.index.device).split(CORRUPT_BATCH):
            index = split.index[position]
            images = split.take(position)
            corrupted = corrupt(images, name, severity, seed=config.seed, indices=chosen[position])
            labels = split.labels[index]
            yield from zip(corrupted.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)

    key["precision"] = _precision(runtime)
    files = [_kept(each, f"corruption-{source}", key, runtime) for each in group]
    found = [dict(kept["figures"]) if kept else {} for kept, _ in files]
    if archive is None and len(split) < len(first.test):
        for each, figures in zip(group, found, strict=True):
            figures[f"corruption/{source}_clean"] = float(
                correct[each.run.path][chosen.cpu().numpy()].mean()
            )
    for name in names:
        paths = [f"corruption/{source}/{name}/{severity}" for severity in SEVERITIES]
        missing = [i for i, figures in enumerate(found) if not figures.keys() >= set(paths)]
        if not missing:
            continue
        start = time.monotonic()
        classifiers = {i: group[i].classifier for i in missing}
        for severity, path in zip(SEVERITIES, paths, strict=True):
            right = dict.fromkeys(missing, torch.zeros((), device=split.index.device))
            for images, labels in walk(name, severity):
                for i, classifier in classifiers.items():
                    logits = predict_pixels(classifier, [images], autocast=runtime.autocast)
                    right[i] = right[i] + (predicted_classes(logits) == labels).sum()
            for i in missing:
                found[i][path] = float(right[i]) / num_images
        for i in missing:
            figures = _with_means(found[i], source)
            files[i] = (files[i][1]({"figures": figures, "protocol": protocol}), files[i][1])
        logger.info(
            "corruption %s (%s) of %d network%s: %.0f s",
            name,
            source,
            len(missing),
            "s" * (len(missing) > 1),
            time.monotonic() - start,
        )
    return [kept for kept, _ in files if kept is not None]


def _with_means(figures: Mapping[str, float], source: str) -> dict[str, float]:
    """Add the mean over all types and severities; only of a whole set, so that means compare."""
    shown = dict(figures)
    for path, names in (
        (f"corruption/{source}", CORRUPTIONS),
        (f"corruption/{source}_extra", EXTRA_CORRUPTIONS),
    ):
        cells = [f"corruption/{source}/{name}/{s}" for name in names for s in SEVERITIES]
        if all(cell in figures for cell in cells):
            shown[path] = sum(figures[cell] for cell in cells) / len(cells)
    return shown


def _collect(opened: _Opened, parts: Sequence[dict[str, Any]], attention: bytes | None) -> Scores:
    accuracy = parts[0]
    summary = accuracy["summary"]
    evidence = accuracy["evidence"]
    figures: dict[str, float] = {}
    protocol: dict[str, str] = {}
    missing: dict[str, str] = {}
    for part in parts:
        figures |= part["figures"]
        protocol |= part["protocol"]
        missing |= part.get("missing", {})
    return Scores(
        run=opened.run,
        summary=summary,
        figures=figures,
        correct=unpack_correct(accuracy),
        evidence=Evidence(
            class_names=opened.dataset.class_names,
            confusion=tuple(tuple(row) for row in evidence["confusion"]),
            reliability=_bins(evidence["reliability"]),
            reliability_scaled=_bins(evidence["reliability_scaled"]),
            attention=attention,
        ),
        protocol=protocol,
        missing=missing,
    )


def _kept(
    opened: _Opened,
    part: str,
    settings: Mapping[str, Any],
    runtime: Runtime | None,
    *,
    identity: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any] | None, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Return what was measured before under the same conditions, and how to keep it anew.

    Args:
        opened: The run.
        part: Name of the part.
        settings: What its figures depend on, beside ``identity`` and device.
        runtime: Where it is measured; ``None`` where figures do not depend on it.
        identity: Of what they are; ``None`` is weights and test images.
    """
    said = {
        "format": FORMAT_VERSION,
        **(opened.identity if identity is None else identity),
        "device": None if runtime is None else runtime.device.type,
        **settings,
    }
    text = json.dumps(said, sort_keys=True)
    key = json.loads(text)  # as it will be read again: tuples are lists
    digest = _digest(said)
    path = opened.run.path / "bench" / f"{part}-{digest}.json"

    def save(measured: dict[str, Any]) -> dict[str, Any]:
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, {**measured, "key": key})
        except (OSError, DataError) as error:  # a read-only run can still be scored
            logger.warning("%s is not kept: %s", path, error)
        return measured

    try:
        measured = json.loads(path.read_text())
        if measured["key"] == key and _is_whole(measured, part):
            return measured, save
    except FileNotFoundError:
        return None, save
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    logger.warning("%s is broken: measured anew", path)
    return None, save


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _is_whole(measured: Mapping[str, Any], part: str) -> bool:
    """Tell whether a part that was read has all that it was written with."""
    if not all(math.isfinite(value) for value in measured["figures"].values()):
        return False
    if not all(isinstance(text, str) for text in measured["protocol"].values()):
        return False
    if part != "accuracy":
        return True
    evidence = {"confusion", "reliability", "reliability_scaled"}
    right = unpack_correct(measured)
    return evidence <= measured["evidence"].keys() and math.isclose(
        right.mean(), measured["summary"]["top1"], abs_tol=1e-9
    )


def _draw_attention(opened: _Opened, runtime: Runtime) -> bytes:
    """Return a PNG of where a network looks in the first test images of different classes."""
    digest = _digest({"version": PICTURE_VERSION, **opened.identity})
    kept = opened.run.path / "bench" / f"attention-{digest}.png"
    if kept.is_file() and (picture := kept.read_bytes()).startswith(PNG):
        return picture
    split = opened.test
    labels = split.labels[split.index]
    first = {int(label): place for place, label in reversed(list(enumerate(labels.tolist())))}
    places = torch.tensor(sorted(first.values())[:PICTURED], device=split.index.device)
    with tempfile.TemporaryDirectory() as folder:
        _, path = draw_tokens(
            opened.backbone,
            split.take(places),
            opened.dataset.mean,
            opened.dataset.std,
            Path(folder),
            title="",  # the page says whose it is
            autocast=runtime.autocast,
        )
        picture = path.read_bytes()
    try:
        kept.parent.mkdir(exist_ok=True)
        with replacing(kept, "make the run's folder writable") as file:
            file.write(picture)
    except (OSError, DataError) as error:
        logger.warning("the picture is not kept: %s", error)
    return picture


def _predict(
    opened: _Opened, split: str, runtime: Runtime
) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    part = opened.dataset.splits[split]
    batches = eval_batches(opened.dataset, part, EVAL_BATCH)
    shown = track(batches, f"classifying {split}", math.ceil(len(part) / EVAL_BATCH))
    return predict_logits(opened.backbone, shown, autocast=runtime.autocast)


def _same_images(opened: Sequence[_Opened]) -> list[list[_Opened]]:
    """Group runs whose test images, and their size, are the same."""
    groups: dict[tuple[Any, ...], list[_Opened]] = {}
    for each in opened:
        size = each.dataset.image_size
        key = (each.dataset.fingerprint, each.run.env["split_hashes"]["test"], size)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _fingerprint(archive: Path) -> str:
    """Hash what the files of an archive are called, how large they are and when they were made.

    Not their pixels, which are gigabytes. Of folders of pictures, the folders of classes.
    """
    files = [archive] if archive.is_file() else [*archive.glob("*"), *archive.glob("*/*/*")]
    facts = sorted((str(f.relative_to(archive.parent)), f.stat()) for f in files)
    said = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts])
    return hashlib.sha256(said.encode()).hexdigest()


def _hash_weights(run: Run) -> str:
    path = run.path / "export" / "model.safetensors"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _precision(runtime: Runtime) -> str:
    return runtime.precision


def _bins(found: Mapping[str, Sequence[float | None]]) -> tuple[Bin, ...]:
    return tuple(
        Bin(count=int(count or 0), confidence=confidence or 0.0, accuracy=accuracy or 0.0)
        for count, confidence, accuracy in zip(
            found["count"], found["confidence"], found["accuracy"], strict=True
        )
    )
