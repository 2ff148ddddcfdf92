from dataclasses import replace

import numpy as np
import pytest

from smallvit.evaluate.yardstick import measure_yardstick
from smallvit.leaderboard.rows import build_rows, separate
from smallvit.leaderboard.verdict import compare_rows, verdict, warnings_of


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


def judged(entries) -> tuple[list[str], list]:
    """The verdict of entries whose first images are the right ones."""
    rows = build_rows(entries)
    correct = {entry.run: np.arange(entry.n_test) < entry.correct for entry in entries}
    comparisons = compare_rows(rows, correct)
    return verdict(rows, comparisons), comparisons


def test_verdict_of_rows_that_a_paired_test_does_not_tell_apart(four_arms):
    # 'both' is right on 4 images that 'scratch' is not: p = 1/8 before the correction for 6 pairs.
    (sentence,), comparisons = judged(four_arms)
    assert sentence == (
        "digits: 'both' has the highest top-1, 94.00 %, 1.00 points above the next, 'token labels' "
        "at 93.00 %: a paired test does not tell them apart (McNemar, one seed, 100 test images, "
        "p = 1, adjusted for 6 comparisons); 4.00 points above 'scratch' at 90.00 %: a paired test "
        "does not tell them apart (McNemar, one seed, 100 test images, p = 0.75, adjusted for 6 "
        "comparisons)."
    )
    assert len(comparisons) == 6


def test_verdict_says_better_where_a_paired_test_does_and_what_one_seed_leaves_open(entry):
    (sentence,), _ = judged([entry(correct=50), entry("SSL start", correct=90)])
    assert "40.00 points above the next, 'scratch'" in sentence
    assert "better by a paired test (McNemar, one seed, 100 test images, p = 1.8e-12)" in sentence
    assert "one seed does not show how much seeds differ" in sentence


@pytest.mark.parametrize(
    ("gap", "said"),
    [(1, "does not tell them apart (t over seeds"), (30, "better by a paired test")],
)
def test_verdict_over_seeds_uses_mean_and_std(entry, gap, said):
    runs = [entry(correct=60 + 2 * seed, seed=seed) for seed in range(3)]
    runs += [entry("both", correct=60 + gap + 2 * seed, seed=seed) for seed in range(3)]
    (sentence,), _ = judged(runs)
    assert "62.00 +- 2.00 %" in sentence
    assert f"{said}" in sentence
    assert "3 seeds, 100 test images" in sentence
    assert "one seed" not in sentence


def test_rows_are_compared_on_the_seeds_that_they_share(entry):
    runs = [entry(), entry("both", correct=95, seed=0), entry("both", correct=96, seed=1)]
    _, (comparison,) = judged(runs)
    assert comparison.num_seeds == 1
    assert comparison.difference == pytest.approx(0.05)  # of seed 0 alone


def test_better_is_not_said_where_the_shared_seeds_say_worse(entry):
    """Seeds 1 and 2 lift the row's mean above scratch; on seed 0, which both have, it is below."""
    runs = [entry(correct=82)]
    runs += [entry("both", correct=c, seed=s) for s, c in enumerate((60, 95, 99))]
    (sentence,), (comparison,) = judged(runs)
    assert comparison.verdict == "worse"
    assert "2.67 points above the next, 'scratch'" in sentence
    assert (
        "on the seeds that both have it is 22.00 points below, worse by a paired test" in sentence
    )
    assert "better" not in sentence


def test_a_seed_that_was_run_twice_is_not_tested(entry):
    runs = [entry(run="a"), entry(run="b", correct=70), entry("both", correct=95)]
    sentences, comparisons = judged(runs)
    assert comparisons == []
    assert "a seed was run more than once, so no paired test was made" in sentences[0]


def test_a_figure_that_only_some_runs_have_is_said(entry):
    runs = [entry(metrics={"features/knn": 0.5}), entry(seed=1)]
    assert "only some runs of the row have k-NN" in warnings_of(runs)[0]


def test_rows_without_a_common_seed_are_not_compared(entry):
    sentences, comparisons = judged([entry(), entry("both", correct=95, seed=1)])
    assert comparisons == []
    assert "they share no seed, so no paired test was made" in sentences[0]


def test_the_best_rows_of_each_model_are_compared_and_the_rest_within_theirs(entry):
    runs = [
        entry(arm, model=model, correct=correct)
        for model, correct in (("vit_nano", 60), ("vit_tiny", 70))
        for arm in ("scratch", "both")
    ]
    runs[1] = entry("both", model="vit_nano", correct=65)
    named = {(c.first, c.second) for c in judged(runs)[1]}
    assert named == {
        ("both, vit_nano", "scratch, vit_nano"),
        ("scratch, vit_tiny", "both, vit_tiny"),
        ("scratch, vit_tiny", "both, vit_nano"),
    }


def test_other_data_split_or_choice_of_weights_shares_no_row_and_no_comparison(entry):
    for change, name in (
        ({"fingerprint": "g" * 16}, "digits (data gggggggggggg)"),
        ({"split_hash": "6" * 16}, "digits (split 666666666666)"),
        ({"selected_on": "last step"}, "digits (chosen on last step)"),
    ):
        runs = separate([entry(), entry("both", correct=99), entry(seed=1, **change)])
        rows = build_rows(runs)
        assert len(rows) == 3
        assert sorted(row.dataset for row in rows)[-1].startswith("digits (")
        assert name in {row.dataset for row in rows}
        assert len(judged(runs)[1]) == 1
        assert "kept apart and not compared" in warnings_of(runs)[0]


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


def test_a_run_from_scratch_is_one_whatever_its_other_settings_are(entry):
    runs = [
        entry(correct=80 + place, run=f"s{place}", settings={"finetune.optim.lr": lr})
        for place, lr in enumerate((1e-3, 1e-4))
    ]
    (sentence,) = verdict(build_rows(separate([*runs, entry("both", correct=95)])))
    assert "14.00 points above the next, 'scratch (lr 0.0001)' at 81.00 %" in sentence
    assert "no run from scratch" not in sentence
    behind = [*runs, entry("both", correct=95), entry("SSL start", correct=94)]
    (sentence,) = verdict(build_rows(separate(behind)))
    assert "; 14.00 points above 'scratch (lr 0.0001)' at 81.00 %: " in sentence


def test_a_classifier_that_names_one_class_is_never_the_best_and_said_so(entry):
    blind = replace(
        measure_yardstick([[14, 0], [1, 85]], ("cat", "dog")),
        names_one_class=True,
        named_share=0.97,
    )
    sound = measure_yardstick([[14, 0], [16, 70]], ("cat", "dog"))
    sound = replace(sound, p_value=0.01)
    runs = [entry(correct=84, yardstick=sound), entry("both", correct=99, yardstick=blind)]
    rows = build_rows(runs)
    assert [(row.arm, row.best, row.faulty) for row in rows] == [
        ("scratch", True, False),
        ("both", False, True),
    ]
    (sentence,), _ = judged(runs)
    assert sentence == (
        "digits: only 'scratch' has an accuracy to go by, top-1 84.00 % (naming 'dog' always "
        "86.00 %); there is nothing to compare it with; 'both' (99.00 %) is left out, with no "
        "accuracy to go by."
    )
    (warning,) = warnings_of(runs)
    assert warning == (
        "digits, vit_nano, both: no accuracy to go by: it names 'dog' for 97.00 % of the images"
    )


def test_a_run_from_scratch_without_an_accuracy_to_go_by_is_not_said_to_be_missing(entry):
    blind = measure_yardstick([[50, 0], [45, 5]], ("cat", "dog"))
    runs = [entry(correct=55, yardstick=blind), entry("SSL start", correct=90)]
    (sentence,) = verdict(build_rows([*runs, entry("both", correct=95)]))
    assert "5.00 points above the next, 'SSL start'" in sentence
    assert "'scratch' (55.00 %) is left out" in sentence
    assert "no run from scratch" not in sentence


def test_where_no_row_can_be_gone_by_none_is_the_best(entry):
    chance = measure_yardstick([[50, 0], [45, 5]], ("cat", "dog"))
    runs = [entry(correct=54, yardstick=chance), entry("both", correct=55, yardstick=chance)]
    assert not any(row.best for row in build_rows(runs))
    (sentence,), _ = judged(runs)
    assert sentence == (
        "digits: no accuracy to go by (naming 'cat' always 50.00 %): top-1 of 'both' 55.00 % and "
        "'scratch' 54.00 %."
    )


def test_a_row_over_seeds_can_be_gone_by_where_most_of_its_runs_can(entry):
    chance = measure_yardstick([[50, 0], [45, 5]], ("cat", "dog"))
    sound = measure_yardstick([[45, 5], [5, 45]], ("cat", "dog"))
    runs = [
        entry(correct=90 - seed, seed=seed, yardstick=chance if seed == 2 else sound)
        for seed in range(3)
    ]
    (row,) = build_rows(runs)
    assert (row.best, row.faulty, row.commonest_share) == (True, False, 0.5)
    (warning,) = warnings_of(runs)
    assert "no accuracy to go by (seed 2, 1 of 3 runs): it names 'cat' for 95.00 %" in warning
    (row,) = build_rows([*runs, entry(seed=3, yardstick=chance)])
    assert (row.best, row.faulty) == (False, True)


def test_verdict_of_one_row(entry):
    assert "nothing to compare it with" in verdict(build_rows([entry()]))[0]


def test_verdict_names_model_and_fraction_where_there_are_several(entry):
    runs = [entry(), entry(model="vit_tiny", label_fraction=0.1)]
    assert [sentence.split(":")[0] for sentence in verdict(build_rows(runs))] == [
        "digits, vit_nano, 100 % of the labels",
        "digits, vit_tiny, 10 % of the labels",
    ]


def test_verdict_never_says_better_without_a_test(four_arms, entry):
    runs = [*four_arms, entry(dataset="cifar10"), entry("both", dataset="cifar10", correct=10)]
    assert "better" not in " ".join(verdict(build_rows(runs)))
