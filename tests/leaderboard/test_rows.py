import dataclasses
import math

import numpy as np
import pytest

from smallvit.core.errors import DataError
from smallvit.leaderboard.rows import build_rows, separate, wilson_interval


@pytest.mark.parametrize(("correct", "n_test"), [(350, 360), (0, 10), (10, 10), (1, 3)])
def test_wilson_interval_is_the_closed_form(correct, n_test):
    z = 1.959963984540054  # 97.5 % point of the normal distribution
    share = correct / n_test
    centre = (share + z**2 / (2 * n_test)) / (1 + z**2 / n_test)
    half = z / (1 + z**2 / n_test)
    half *= math.sqrt(share * (1 - share) / n_test + z**2 / (4 * n_test**2))
    assert wilson_interval(correct, n_test) == pytest.approx((centre - half, centre + half))


def test_one_seed_has_an_interval_and_no_std(entry):
    (row,) = build_rows([entry(correct=90)])
    assert row.interval == wilson_interval(90, 100)
    assert row.top1_std is None
    assert row.figure("top5").std is None


def test_several_seeds_have_a_sample_std_and_no_interval(entry):
    corrects = (90, 93, 97)
    (row,) = build_rows([entry(correct=c, seed=s) for s, c in enumerate(corrects)])
    values = np.array(corrects) / 100
    assert row.top1_mean == pytest.approx(values.mean())
    assert row.top1_std == pytest.approx(values.std(ddof=1))
    assert row.interval is None
    assert row.seeds == (0, 1, 2)


def test_a_seed_that_was_run_twice_is_still_one_seed(entry):
    (row,) = build_rows([entry(correct=90, run="a"), entry(correct=92, run="b")])
    assert row.num_seeds == 1
    assert row.top1_std is None
    assert row.interval == wilson_interval(91, 100)


def test_costs_are_means(entry):
    (row,) = build_rows([entry(seed=0, wall_s=10.0), entry(seed=1, wall_s=20.0)])
    assert row.mean("wall_s") == 15.0


@pytest.mark.parametrize(
    "change",
    [{"dataset": "cifar10"}, {"model": "vit_tiny"}, {"label_fraction": 0.1}],
)
def test_rows_do_not_mix(entry, change):
    assert len(build_rows([entry(), entry(**change)])) == 2


def test_rows_go_by_dataset_and_then_from_scratch_to_both(four_arms, entry):
    rows = build_rows([*four_arms, entry(dataset="cifar10")])
    assert [(row.dataset, row.arm) for row in rows] == [
        ("cifar10", "scratch"),
        ("digits", "scratch"),
        ("digits", "SSL start"),
        ("digits", "token labels"),
        ("digits", "both"),
    ]


def test_a_start_from_another_stage_is_an_arm_of_its_own_and_comes_last(four_arms, entry):
    others = [dataclasses.replace(entry(seed=seed), init="finetune") for seed in range(2)]
    rows = build_rows([*others, *four_arms])
    assert len(rows) == 5
    assert (rows[-1].arm, rows[-1].num_seeds) == ("finetune start", 2)


def test_best_is_the_highest_mean_of_its_dataset(four_arms, entry):
    rows = build_rows([*four_arms, entry(dataset="cifar10", correct=40)])
    assert [(row.dataset, row.arm) for row in rows if row.best] == [
        ("cifar10", "scratch"),
        ("digits", "both"),
    ]


def test_runs_of_other_settings_share_no_row_and_their_difference_is_named(entry):
    settings = {"finetune.optim.weight_decay": 0.05, "model.depth": 4}
    runs = [
        entry("SSL start", settings=settings | {"pretrain.method": "dino"}),
        entry("SSL start", seed=1, settings=settings | {"pretrain.method": "dino"}),
        entry("SSL start", settings=settings | {"pretrain.method": "mae"}),
        entry(settings=settings | {"model.depth": 9}),
    ]
    rows = build_rows(separate(runs))
    assert [(row.arm, row.num_seeds) for row in rows] == [
        ("scratch", 1),  # alone in its arm: it differs from nothing that it would be averaged with
        ("SSL start (method dino)", 2),
        ("SSL start (method mae)", 1),
    ]


def test_runs_that_differ_in_much_are_named_by_a_hash(entry):
    runs = [entry(settings={f"s{i}": value for i in range(9)}) for value in (0, 1)]
    arms = [row.arm for row in build_rows(separate(runs))]
    assert len(set(arms)) == 2
    assert all(arm.startswith("scratch (settings ") for arm in arms)


def test_runs_of_the_same_data_have_no_variant(four_arms):
    assert separate(four_arms) == four_arms


def test_other_figures_are_means_with_a_std_over_seeds(entry):
    values = (0.2, 0.4, 0.9)
    runs = [entry(seed=s, metrics={"calibration/ece": v}) for s, v in enumerate(values)]
    (row,) = build_rows(runs)
    figure = row.figures["calibration/ece"]
    assert figure.mean == pytest.approx(0.5)
    assert figure.std == pytest.approx(np.std(values, ddof=1))
    assert figure.n == 3
    (row,) = build_rows(runs[:1])
    assert row.figures["calibration/ece"].std is None


def test_a_figure_that_a_run_lacks_is_averaged_over_those_that_have_it(entry):
    (row,) = build_rows([entry(metrics={"features/knn": 0.5}), entry(seed=1)])
    assert (row.figures["features/knn"].mean, row.figures["features/knn"].n) == (0.5, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"top1": 0.5}, "top1 is 0.5, but 90 of 100 images are correct"),
        ({"top1": math.nan}, "top1 must be finite"),
        ({"top5": 1.5}, "top5 must be in"),
        ({"wall_s": -1.0}, "wall_s must be finite and not negative, got -1.0"),
        ({"correct": 101, "top1": 1.0}, "101 correct of 100"),
        ({"num_labels": 0}, "no images"),
        ({"label_fraction": 0.0}, "label_fraction must be in"),
        ({"metrics": {"cost/macs": math.inf}}, "cost/macs must be finite, got inf"),
    ],
)
def test_rejects_figures_that_cannot_be(entry, change, match):
    with pytest.raises(DataError, match=match):
        entry(**change)
