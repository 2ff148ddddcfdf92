"""What may be said of the rows of a leaderboard, and what keeps them from being compared.

Shapes in this file:
    N    test images
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from statistics import fmean
from typing import TypeVar

import numpy as np
from jaxtyping import Bool

from smallvit.leaderboard.comparison import (
    Comparison,
    Spread,
    compare,
    spread_over_seeds,
)
from smallvit.leaderboard.figures import kind_of, label_of
from smallvit.leaderboard.rows import (
    HASH_SHOWN,
    VARIANTS,
    Entry,
    Row,
    distinct,
    row_groups,
    told_apart,
)

ScoredT = TypeVar("ScoredT", Entry, Row)


def compare_rows(
    rows: Sequence[Row], correct: Mapping[str, Bool[np.ndarray, " N"]]
) -> list[Comparison]:
    """Compare rows of one dataset by paired tests on the images and seeds that they share.

    All rows of one model and label fraction are compared with each other, and the best of each
    model and fraction with those of the others. Rows without a common seed, or of which a seed was
    run more than once, are left out.

    Args:
        rows: What ``build_rows`` made.
        correct: Whether each test image is classified correctly, by the path of the run.
    """
    comparisons = []
    for dataset, of_dataset in _by_dataset(rows):
        groups = _compared(of_dataset)
        pairs = []
        for group in (*groups, [max(group, key=_merit) for group in groups]):
            answers = {
                row.key: {entry.seed: correct[entry.run] for entry in row.entries} for row in group
            }
            spread = _spread(list(answers.values()))
            for pair in combinations(group, 2):
                ranked = sorted(pair, key=lambda row: -row.top1_mean)
                sides = [answers[row.key] for row in ranked]
                seeds = sorted(sides[0].keys() & sides[1].keys())
                if seeds and not any(row.repeats_seeds for row in pair):
                    stacked = [np.stack([side[seed] for seed in seeds]) for side in sides]
                    pairs.append((stacked, (ranked[0].name, ranked[1].name), spread))
        comparisons += [
            compare(
                *stacked, dataset=dataset, names=names, spread=spread, num_comparisons=len(pairs)
            )
            for stacked, names, spread in pairs
        ]
    return comparisons


def _merit(row: Row) -> tuple[bool, float]:
    return not row.faulty, row.top1_mean


def _spread(answers: Sequence[Mapping[int, Bool[np.ndarray, " N"]]]) -> Spread | None:
    """Estimate the spread over the seeds that all rows of a group share, if there are two."""
    seeds = sorted(set.intersection(*(set(of_row) for of_row in answers)))
    if len(answers) < 2 or len(seeds) < 2:
        return None
    return spread_over_seeds(np.array([[row[seed].mean() for seed in seeds] for row in answers]))


def verdict(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """Say in plain sentences, for each dataset, what its rows show and what they cannot.

    Rows are compared within one dataset, model and label fraction. ``better`` is said only where a
    paired test says it.
    """
    sentences = []
    for dataset, of_dataset in _by_dataset(rows):
        apart = dict(zip((row.key for row in of_dataset), told_apart(of_dataset), strict=True))
        for compared in _compared(of_dataset):
            words = apart[compared[0].key]
            sentences.append(f"{', '.join([dataset, *words])}: {_compare(compared, comparisons)}.")
    return sentences


def _compare(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    ranked = sorted((row for row in rows if not row.faulty), key=lambda row: -row.top1_mean)
    faulty = sorted((row for row in rows if row.faulty), key=lambda row: -row.top1_mean)
    if not ranked:
        arms = _and(f"{row.arm!r} {describe_score(row)}" for row in faulty)
        return f"no accuracy to go by{_beside(rows)}: top-1 of {arms}"
    text = _rank(ranked, faulty, comparisons)
    if faulty:
        arms = _and(f"{row.arm!r} ({describe_score(row)})" for row in faulty)
        text += (
            f"; {arms} {'is' if len(faulty) == 1 else 'are'} left out, with no accuracy to go by"
        )
    return text


def _rank(ranked: Sequence[Row], faulty: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    top = ranked[0]
    score = f"{describe_score(top)}{_beside([top])}"
    if len(ranked) == 1:
        what = "has an accuracy to go by" if faulty else "was run"
        return f"only {top.arm!r} {what}, top-1 {score}; there is nothing to compare it with"
    tied = [row for row in ranked if row.top1_mean == top.top1_mean]
    others = [row for row in ranked if row not in tied]
    if not others:
        return f"{_and(repr(row.arm) for row in tied)} have the same top-1, {score}"
    scratch = next((row for row in ranked if row.from_scratch), None)
    runner_up = others[0]
    text = (
        f"{_and(repr(row.arm) for row in tied)} {'share' if len(tied) > 1 else 'has'} the highest "
        f"top-1, {score}, {_above(top, runner_up, 'the next, ', comparisons)}"
    )
    compared = [runner_up]
    if scratch in others[1:]:
        compared.append(scratch)
        text += f"; {_above(top, scratch, '', comparisons)}"
    tests = [_find_test(top, other, comparisons) for other in compared]
    if any(test and test.num_seeds == 1 and test.verdict == "better" for test in tests):
        text += "; one seed does not show how much seeds differ"
    if scratch or any(row.from_scratch for row in faulty):
        return text
    return f"{text}; there is no run from scratch to compare with"


def _above(top: Row, other: Row, which: str, comparisons: Sequence[Comparison]) -> str:
    return (
        f"{100 * (top.top1_mean - other.top1_mean):.2f} points above {which}{other.arm!r} at "
        f"{describe_score(other)}: {_say_test(top, other, comparisons)}"
    )


def _beside(rows: Sequence[Row]) -> str:
    """Say what the accuracy of these rows is held against, where that is known."""
    shares = {row.commonest_share: row.commonest for row in rows if row.commonest_share is not None}
    names = (f"{commonest!r} always {100 * share:.2f} %" for share, commonest in shares.items())
    return f" (naming {' or '.join(names)})" if shares else ""


def _say_test(top: Row, other: Row, comparisons: Sequence[Comparison]) -> str:
    if top.repeats_seeds or other.repeats_seeds:
        return "a seed was run more than once, so no paired test was made"
    test = _find_test(top, other, comparisons)
    if test is None:
        return "they share no seed, so no paired test was made"
    above = test.difference if test.first == top.name else -test.difference
    images = f"{test.n_test:,} test images"
    seeds = "one seed" if test.num_seeds == 1 else f"{test.num_seeds} seeds"
    if test.num_seeds < max(top.num_seeds, other.num_seeds):
        seeds += f" that both have, {100 * above:+.2f} points"
    how = f"{test.test}, {seeds}, {images}, p = {test.p_adjusted:.2g}"
    if test.num_comparisons > 1:
        how += f", adjusted for {test.num_comparisons} comparisons"
    if test.verdict == "not told apart":
        return f"a paired test does not tell them apart ({how})"
    if above < 0:
        return (
            f"but on the seeds that both have it is {-100 * above:.2f} points below, worse by a "
            f"paired test ({how})"
        )
    return f"better by a paired test ({how})"


def _find_test(top: Row, other: Row, comparisons: Sequence[Comparison]) -> Comparison | None:
    named = {top.name, other.name}
    found = (c for c in comparisons if c.dataset == top.dataset and {c.first, c.second} == named)
    return next(found, None)


def describe_score(row: Row) -> str:
    """Write the top-1 of a row, with its standard deviation over seeds."""
    if row.top1_std is None:
        return f"{100 * row.top1_mean:.2f} %"
    return f"{100 * row.top1_mean:.2f} +- {100 * row.top1_std:.2f} %"


def warnings_of(entries: Sequence[Entry]) -> list[str]:
    """Say what keeps ``entries`` from being compared, or their code from being found again."""
    messages = []
    for dataset, group in _by_dataset(entries):
        for attribute, (_, verb) in VARIANTS.items():
            values = distinct(getattr(entry, attribute) for entry in group)
            if len(values) > 1:
                short = ", ".join(value[:HASH_SHOWN] for value in values)
                messages.append(
                    f"{dataset}: the runs were {verb} ({short}); their rows are kept apart and not "
                    "compared"
                )
        machines = distinct(f"{e.machine} ({e.device}, {e.precision})" for e in group)
        if len(machines) > 1:
            messages.append(
                f"{dataset}: the runs used different machines, devices or precisions "
                f"({'; '.join(machines)}); their times are not comparable"
            )
    for group in row_groups(entries):
        messages += _warnings_of_row(group)
    messages += _warnings_of_budgets(entries)
    commits = distinct(entry.commit for entry in entries)
    if len(commits) > 1:
        short = ", ".join(commit[:7] for commit in commits)
        messages.append(f"the runs come from {len(commits)} commits ({short})")
    dirty = [entry for entry in entries if entry.dirty]
    if dirty:
        short = ", ".join(distinct(entry.commit[:7] for entry in dirty))
        messages.append(
            f"{len(dirty)} of {len(entries)} runs used code with uncommitted changes on top of "
            f"commit {short}, which cannot be restored from the commit"
        )
    return messages


def _warnings_of_row(group: Sequence[Entry]) -> Iterable[str]:
    first = group[0]
    name = f"{first.dataset}, {first.model}, {first.shown_arm}"
    faults = [(e.seed, e.yardstick.fault) for e in group if e.yardstick and e.yardstick.fault]
    if faults:
        seed, fault = faults[0]
        of_runs = f" (seed {seed}, {len(faults)} of {len(group)} runs)" if len(group) > 1 else ""
        yield f"{name}: no accuracy to go by{of_runs}: {fault}"
    repeated = [seed for seed, count in Counter(e.seed for e in group).items() if count > 1]
    if repeated:
        seeds = ", ".join(map(str, repeated))
        yield f"{name}: seed {seeds} was run more than once; every run counts in the mean"
    if len({entry.samples_seen for entry in group}) > 1:
        yield f"{name}: the row averages runs that saw different numbers of supervised images"
    if len({entry.params for entry in group}) > 1:
        yield f"{name}: the row averages networks of different sizes"
    partial = distinct(
        figure
        for entry in group
        for figure in entry.metrics
        if kind_of(figure).column and not all(figure in other.metrics for other in group)
    )
    if partial:
        yield f"{name}: only some runs of the row have {', '.join(map(label_of, partial))}"


def _warnings_of_budgets(entries: Sequence[Entry]) -> Iterable[str]:
    ordered = sorted(entries, key=lambda entry: entry.key)
    for key, group in groupby(ordered, key=lambda entry: entry.key[:3]):
        seen: dict[str, list[int]] = {}
        for entry in group:
            seen.setdefault(entry.shown_arm, []).append(entry.samples_seen)
        if len({fmean(counts) for counts in seen.values()}) > 1:
            text = ", ".join(f"{arm} {fmean(counts):,.0f}" for arm, counts in seen.items())
            yield (
                f"{key[0]}, {key[1]}: the arms saw different numbers of supervised images "
                f"({text}); part of a difference may be due to that"
            )


def _by_dataset(items: Sequence[ScoredT]) -> list[tuple[str, list[ScoredT]]]:
    ordered = sorted(items, key=lambda item: item.dataset)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda i: i.dataset)]


def _compared(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of a dataset by what they must share to be compared: model and labels."""
    groups = groupby(rows, key=lambda row: (row.model, row.label_fraction))
    return [list(group) for _, group in groups]


def _and(names: Iterable[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
