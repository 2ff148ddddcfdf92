import dataclasses
import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch

from smallvit.core.errors import CollapsedError
from smallvit.data.dataset import Dataset, Split
from smallvit.data.views import eval_batches
from smallvit.engine.config import OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.runtime import open_runtime
from smallvit.evaluate.knn import extract_features, knn_top1
from smallvit.evaluate.spread import effective_rank, feature_std
from smallvit.pretraining.config import METHODS
from smallvit.pretraining.prototypes import target_metrics
from smallvit.runs.config import MonitorConfig
from smallvit.runs.monitor import (
    BOUNDS,
    CollapseWatch,
    Monitor,
    collapse_bounds,
    collapse_distances,
    get_remedy,
)

LOG_K = math.log(16)
HEALTHY = {
    "train/teacher_entropy": 1.0,
    "train/prototype_entropy": 2.0,
    "features/std": 0.6,
    "features/rank": 8.0,
}
COLLAPSED = {
    "uniform": {**HEALTHY, "train/teacher_entropy": 0.998 * LOG_K},
    "point": {**HEALTHY, "train/prototype_entropy": 0.001},
    "constant": {**HEALTHY, "features/std": 0.004},
    "line": {**HEALTHY, "features/rank": 1.05},
}


def fields_of(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def make_dataset(*, num: int = 40, labelled: bool = True) -> Dataset:
    """Images of two brightnesses; the first thirty train, the rest validate."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 2
    images = torch.randint(0, 100, (num, 3, 16, 16), generator=generator) + 150 * labels.view(
        -1, 1, 1, 1
    )
    parts = {"train": slice(0, 30), "labelled": slice(0, 30), "val": slice(30, num)}
    if not labelled:
        parts = {"train": slice(0, num), "labelled": slice(0, 0), "val": slice(0, 0)}
    index = torch.arange(num)
    splits = {
        name: Split(images=images.to(torch.uint8), labels=labels, index=index[part])
        for name, part in parts.items()
    }
    return Dataset(
        name="made",
        class_names=("dark", "bright") if labelled else (),
        image_size=16,
        splits=splits,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def make_monitor(backbone, dataset: Dataset, **settings) -> Monitor:
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    return Monitor(backbone, dataset, runtime, MonitorConfig(**settings))


def make_watch(folder: Path, **settings) -> CollapseWatch:
    """A watch over 100 steps of which ten warm up."""
    return CollapseWatch(
        config=MonitorConfig(**settings),
        method="dino",
        max_entropy=LOG_K,
        metrics_path=folder / "metrics.jsonl",
        warmup_steps=10,
        total_steps=100,
    )


def judge(watch: CollapseWatch, *evaluations: tuple[int, dict[str, float]]) -> None:
    """Log and judge evaluations one after another, as the loop does."""
    for step, metrics in evaluations:
        with watch.metrics_path.open("a") as file:
            kept = {key: None if math.isnan(value) else value for key, value in metrics.items()}
            file.write(json.dumps({"step": step, **kept}) + "\n")
            file.write(json.dumps({"step": step + 1, "opt/lr": 0.1}) + "\n")
        watch(step, metrics)


def test_the_numbers_are_those_of_their_own_functions(small_vit):
    dataset, backbone = make_dataset(), small_vit()
    monitor = make_monitor(backbone, dataset, bank_size=10, knn_neighbours=3)
    found = monitor()
    bank, val = (
        extract_features(
            backbone, eval_batches(dataset, split, 64), autocast=monitor.runtime.autocast
        )
        for split in (monitor.bank, dataset.splits["val"])
    )
    assert found["val/knn"] == knn_top1(*bank, *val, num_classes=2, num_neighbors=3)
    assert found["features/std"] == pytest.approx(feature_std(val[0]).item())
    assert found["features/rank"] == pytest.approx(effective_rank(val[0]).item())
    assert found["val/linear"] == 1.0  # brightness is easy to see


def test_without_labels_only_the_features_are_measured_on_training_images(small_vit):
    monitor = make_monitor(small_vit(), make_dataset(labelled=False))
    assert set(monitor()) == {"features/std", "features/rank"}
    assert monitor.facts == {"spread_images": 40}


def test_each_image_goes_through_the_network_once_an_evaluation(small_vit):
    backbone, seen = small_vit(), []
    monitor = make_monitor(backbone, make_dataset(), bank_size=10)
    backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monitor()
    assert sum(seen) == 10 + 10


def test_the_mean_of_the_patch_tokens_can_be_measured_in_place_of_the_pooled(small_vit):
    dataset, backbone = make_dataset(), small_vit()
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    monitor = Monitor(backbone, dataset, runtime, MonitorConfig(), features="patches")
    val = dataset.splits["val"]
    ((images, _),) = eval_batches(dataset, val, 64)
    expected = feature_std(backbone(images).patch.mean(dim=1)).item()
    assert monitor()["features/std"] == pytest.approx(expected)
    assert monitor.measure_start()["features/std"] == pytest.approx(expected)
    assert monitor.facts["features"] == "patches"


def test_the_probe_can_be_left_out(small_vit):
    assert "val/linear" not in make_monitor(small_vit(), make_dataset(), linear_probe=False)()


def test_a_bank_smaller_than_the_neighbours_is_said_with_both_numbers(small_vit, caplog):
    monitor = make_monitor(small_vit(), make_dataset(), bank_size=10)
    with caplog.at_level(logging.WARNING, "smallvit"):
        monitor.announce()
        monitor()
    assert [r.message for r in caplog.records] == [
        "k-NN: 20 neighbours are asked for, and the bank has 10 images: all of them vote"
    ]
    assert monitor.facts["knn_neighbours"] == monitor.facts["bank_images"] == 10


@pytest.mark.parametrize(
    ("kind", "metrics"),
    {
        "uniform": {"train/teacher_entropy": LOG_K},
        "point": {"train/prototype_entropy": 0.0},
        "constant": {"features/std": 0.0},
        "line": {"features/rank": 1.0},
    }.items(),
)
def test_a_collapse_is_at_distance_zero_of_its_kind(kind, metrics):
    assert collapse_distances(metrics, LOG_K)[kind] == pytest.approx(0)


def test_a_method_without_targets_is_judged_by_its_features_alone():
    assert set(collapse_distances(HEALTHY, None)) == {"constant", "line"}


@pytest.mark.parametrize("kind", BOUNDS)
def test_two_collapsed_evaluations_in_a_row_stop_the_run(tmp_path, kind):
    watch = make_watch(tmp_path)
    judge(watch, (20, HEALTHY), (30, COLLAPSED[kind]))
    with pytest.raises(CollapsedError, match=r"by step 40: (the|all) .*; lower") as caught:
        judge(watch, (40, COLLAPSED[kind]))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_collapse_that_comes_and_goes_stops_nothing(tmp_path, kind):
    bad = COLLAPSED[kind]
    judge(make_watch(tmp_path), (20, bad), (30, HEALTHY), (40, bad), (50, HEALTHY), (100, HEALTHY))


def test_one_kind_after_another_stops_nothing(tmp_path):
    judge(make_watch(tmp_path), (20, COLLAPSED["uniform"]), (30, COLLAPSED["constant"]))


def test_nothing_is_judged_in_the_warm_up(tmp_path):
    watch, bad = make_watch(tmp_path), COLLAPSED["constant"]
    judge(watch, (4, bad), (8, bad), (12, bad))
    with pytest.raises(CollapsedError, match="step 16"):
        judge(watch, (16, bad))


def test_the_last_evaluation_counts_with_one_before_it_in_the_warm_up(tmp_path):
    with pytest.raises(CollapsedError, match="step 100"):
        judge(make_watch(tmp_path), (5, COLLAPSED["line"]), (100, COLLAPSED["line"]))


def test_a_single_evaluation_proves_nothing_and_that_is_said(tmp_path, caplog):
    judge(make_watch(tmp_path), (100, COLLAPSED["uniform"]))
    (said,) = [r.message for r in caplog.records]
    assert said.startswith("the targets are uniform")
    assert said.endswith("lower schedule.eval_epochs")


def test_targets_of_1024_prototypes_that_are_uniform_to_the_last_bit_are_found(tmp_path):
    """In float32 their entropy is above log K."""
    uniform = target_metrics(torch.zeros(2, 3, 1024), torch.zeros(1024), 0.04)
    metrics = {**HEALTHY, **{name: value.item() for name, value in uniform.items()}}
    watch = make_watch(tmp_path)
    watch.max_entropy = math.log(1024)
    with pytest.raises(CollapsedError, match="the targets are uniform"):
        judge(watch, (20, metrics), (30, metrics))


def test_targets_that_are_sharp_but_differ_are_no_collapse(tmp_path):
    logits = 100 * torch.eye(16).repeat(2, 1, 1)
    sharp = target_metrics(logits, torch.zeros(16), 0.04)
    assert sharp["train/teacher_entropy"].item() == pytest.approx(0)
    metrics = {**HEALTHY, **{name: value.item() for name, value in sharp.items()}}
    judge(make_watch(tmp_path), (20, metrics), (30, metrics), (100, metrics))


def test_a_network_that_starts_flat_is_judged_by_how_far_it_falls(tmp_path):
    start = {"features/std": 1e-5, "features/rank": 1.002}
    watch = make_watch(tmp_path)
    watch.bounds = collapse_bounds(start, 100)
    flat, flatter = {**HEALTHY, **start}, {**HEALTHY, **start, "features/std": 4e-6}
    judge(watch, (20, flat), (30, flat), (40, flatter))
    with pytest.raises(CollapsedError, match="features of all images are the same"):
        judge(watch, (50, flatter))


def test_bounds_of_weights_that_were_trained_and_of_ordinary_starts_are_the_fixed_ones():
    start = {"features/std": 0.09, "features/rank": 2.2}
    assert collapse_bounds({}, 100) == collapse_bounds(start, 100) == BOUNDS


def test_the_features_of_few_images_are_not_judged():
    bounds = collapse_bounds({}, 3)
    assert (bounds["constant"], bounds["line"]) == (0, 0)
    assert bounds["uniform"] == BOUNDS["uniform"]


def test_a_run_that_leaves_the_start_is_let_go(tmp_path):
    steps = [(20, 0.001), (30, 0.002), (40, 0.004), (50, 0.008)]
    judge(make_watch(tmp_path), *((s, {**HEALTHY, "features/std": std}) for s, std in steps))


def test_a_warning_is_said_once_and_the_run_goes_on(tmp_path, caplog):
    watch, bad = make_watch(tmp_path, on_collapse="warn"), COLLAPSED["uniform"]
    judge(watch, (20, bad), (30, bad), (40, bad), (100, bad))
    assert [r.message.split(":")[0] for r in caplog.records] == ["training collapsed by step 30"]


def test_a_resumed_run_judges_as_an_unbroken_one(tmp_path):
    judge(make_watch(tmp_path), (20, HEALTHY), (30, COLLAPSED["point"]))
    with pytest.raises(CollapsedError, match="step 40"):
        judge(make_watch(tmp_path), (40, COLLAPSED["point"]))


def test_values_that_are_not_finite_are_not_judged(tmp_path):
    nothing = dict.fromkeys(HEALTHY, math.nan)
    judge(make_watch(tmp_path), (20, COLLAPSED["line"]), (30, nothing), (40, COLLAPSED["line"]))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (method, kind)
        for method, config in METHODS.items()
        for kind in BOUNDS
        if kind not in ("uniform", "point") or "teacher_temp" in fields_of(config)
    ],
)
def test_the_advice_names_settings_that_there_are(method, kind):
    sections = {"method": METHODS[method], "optim": OptimConfig, "schedule": ScheduleConfig}
    named = re.findall(r"(\w+)\.(\w+)", get_remedy(method, kind))
    assert len(named) >= 2
    assert all(key in fields_of(sections[section]) for section, key in named)
