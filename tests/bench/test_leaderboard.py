import dataclasses
import math

import numpy as np
import pytest

from smallvit.bench.leaderboard import build_rows, verdict, warnings_of, wilson_interval
from smallvit.core.errors import DataError


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
    assert (row.top1_low, row.top1_high) == wilson_interval(90, 100)
    assert row.top1_std is None
    assert row.top5_std is None


def test_several_seeds_have_a_sample_std_and_no_interval(entry):
    corrects = (90, 93, 97)
    (row,) = build_rows([entry(correct=c, seed=s) for s, c in enumerate(corrects)])
    values = np.array(corrects) / 100
    assert row.top1_mean == pytest.approx(values.mean())
    assert row.top1_std == pytest.approx(values.std(ddof=1))
    assert (row.top1_low, row.top1_high) == (None, None)
    assert row.seeds == (0, 1, 2)


def test_a_seed_that_was_run_twice_is_still_one_seed(entry):
    (row,) = build_rows([entry(correct=90, run="a"), entry(correct=92, run="b")])
    assert row.num_seeds == 1
    assert row.top1_std is None
    assert (row.top1_low, row.top1_high) == wilson_interval(91, 100)


def test_costs_are_means(entry):
    (row,) = build_rows([entry(seed=0, wall_s=10.0), entry(seed=1, wall_s=20.0)])
    assert row.wall_s == 15.0


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
    others = [
        dataclasses.replace(entry(seed=seed), init="finetune", arm="finetune start")
        for seed in range(2)
    ]
    rows = build_rows([*others, *four_arms])
    assert len(rows) == 5
    assert (rows[-1].arm, rows[-1].num_seeds) == ("finetune start", 2)


def test_best_is_the_highest_mean_of_its_dataset(four_arms, entry):
    rows = build_rows([*four_arms, entry(dataset="cifar10", correct=40)])
    assert [(row.dataset, row.arm) for row in rows if row.best] == [
        ("cifar10", "scratch"),
        ("digits", "both"),
    ]


def test_like_runs_raise_no_warning(four_arms):
    assert warnings_of(four_arms) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "other"}, "digits: the runs were trained on different versions"),
        ({"split_hash": "other"}, "digits: the runs were scored on different test splits"),
        ({"commit": "fedcba9876"}, "2 commits (0123456, fedcba9)"),
        ({"dirty": True}, "1 of 2 runs used code with uncommitted changes"),
        ({"device": "H200"}, "times are not comparable"),
        ({"samples_seen": 60_000}, "scratch 30,000, both 60,000"),
    ],
)
def test_unlike_runs_raise_a_warning(entry, change, said):
    (message,) = warnings_of([entry(), entry("both", **change)])
    assert said in message


def test_different_data_of_different_datasets_are_no_reason_to_warn(entry):
    other = entry(dataset="cifar10", fingerprint="other", split_hash="other", device="H200")
    assert warnings_of([entry(), other]) == []


def test_warns_of_a_row_that_mixes_runs(entry):
    messages = warnings_of([entry(run="a"), entry(run="b", samples_seen=10)])
    assert "digits, vit_nano, scratch: seed 0 was run more than once" in messages[0]
    assert "different numbers of supervised images" in messages[1]


def test_verdict_of_overlapping_intervals(four_arms):
    assert verdict(build_rows(four_arms)) == [
        "digits: 'both' has the highest top-1, 94.00 %, 4.00 points above 'scratch' at 90.00 %; "
        "the intervals overlap: one seed and 100 test images cannot tell them apart."
    ]


def test_verdict_of_intervals_apart(entry):
    (sentence,) = verdict(build_rows([entry(correct=50), entry("SSL start", correct=90)]))
    assert "40.00 points above 'scratch'" in sentence
    assert "the intervals do not overlap on 100 test images" in sentence


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (1, "the ranges of mean +- std overlap: 3 seeds cannot tell them apart"),
        (30, "over 3 seeds, the ranges of mean +- std do not overlap"),
    ],
)
def test_verdict_over_seeds_uses_mean_and_std(entry, gap, said):
    runs = [entry(correct=60 + 2 * seed, seed=seed) for seed in range(3)]
    runs += [entry("both", correct=60 + gap + 2 * seed, seed=seed) for seed in range(3)]
    (sentence,) = verdict(build_rows(runs))
    assert "62.00 +- 2.00 %" in sentence
    assert said in sentence


def test_verdict_does_not_compare_a_seed_with_several(entry):
    runs = [entry(), entry("both", correct=95, seed=0), entry("both", correct=96, seed=1)]
    assert "one of them has a single seed" in verdict(build_rows(runs))[0]


def test_verdict_when_scratch_leads(entry):
    (sentence,) = verdict(build_rows([entry(correct=95), entry("both", correct=94)]))
    assert sentence.startswith("digits: 'scratch' has the highest top-1")
    assert "1.00 points above the next, 'both'" in sentence


def test_verdict_of_a_tie(entry):
    runs = [entry(correct=80), entry("SSL start", correct=90), entry("both", correct=90)]
    assert "'SSL start' and 'both' share the highest top-1" in verdict(build_rows(runs))[0]
    assert "have the same top-1" in verdict(build_rows(runs[1:]))[0]


def test_verdict_without_a_run_from_scratch(entry):
    (sentence,) = verdict(build_rows([entry("SSL start"), entry("both", correct=95)]))
    assert sentence.endswith("there is no run from scratch to compare with.")


def test_verdict_of_one_row(entry):
    assert "nothing to compare it with" in verdict(build_rows([entry()]))[0]


def test_verdict_names_model_and_fraction_where_there_are_several(entry):
    runs = [entry(), entry(model="vit_tiny", label_fraction=0.1)]
    assert [sentence.split(":")[0] for sentence in verdict(build_rows(runs))] == [
        "digits, vit_nano, 100 % of the labels",
        "digits, vit_tiny, 10 % of the labels",
    ]


def test_verdict_never_says_better(four_arms, entry):
    runs = [*four_arms, entry(dataset="cifar10"), entry("both", dataset="cifar10", correct=10)]
    assert "better" not in " ".join(verdict(build_rows(runs)))


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
        ({"token_labels": True}, "arm must be 'token labels'"),
    ],
)
def test_rejects_figures_that_cannot_be(entry, change, match):
    with pytest.raises(DataError, match=match):
        entry(**change)
