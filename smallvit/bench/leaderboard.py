"""Rows of a leaderboard: scored runs, averaged over seeds, and what may be said of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from statistics import fmean, stdev
from typing import TypeVar

from scipy.stats import binomtest

from smallvit.bench.comparison import Comparison
from smallvit.bench.figures import Figure
from smallvit.bench.published import Reference
from smallvit.core.errors import DataError

SCRATCH = "scratch"
# The name of each arm by (init, token_labels), in the order in which tables show them.
ARMS = {
    ("scratch", False): SCRATCH,
    ("pretrain", False): "SSL start",
    ("scratch", True): "token labels",
    ("pretrain", True): "both",
}
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scored run.

    Attributes:
        dataset: Name of the dataset.
        model: Name of the model.
        arm: Name of the pair (init, token_labels); for those of ``ARMS``, the name there.
        init: Where the weights come from: ``scratch``, or the stage of a run, mostly ``pretrain``.
        token_labels: Whether stage 2 was supervised patch by patch as well.
        label_fraction: Part of the training labels that was used, in (0, 1].
        num_labels: Labelled training images.
        seed: Seed of the run.
        top1: Accuracy on the test images, in [0, 1].
        top5: Part of the test images whose class is among the five likeliest, in [0, 1].
        correct: Test images that were classified correctly.
        n_test: Test images.
        params: Parameters of the model.
        samples_seen: Supervised images of stage 2, repeats counted.
        pretrain_samples: Images of the pretraining that the run starts from, repeats counted.
        teacher_samples: Images of the training of the teacher, repeats counted.
        wall_s: Time of stage 2 alone.
        total_wall_s: Time with the pretraining, teacher and labelling that the run builds on.
        images_per_s: Training speed of stage 2.
        extra_data: Data beyond this dataset that any stage has seen, or ``none``.
        commit: Commit of the code.
        dirty: Whether the code had changes that the commit lacks.
        machine: Machine that trained it.
        device: Device that trained it.
        precision: Arithmetic of the training.
        run: Path of the run.
        fingerprint: Hash of the dataset.
        split_hash: Hash of the test split.
        metrics: Other figures of the run, by the paths of ``figures.FIGURES``.

    Raises:
        DataError: If the figures contradict each other or are out of range.
    """

    dataset: str
    model: str
    arm: str
    init: str
    token_labels: bool
    label_fraction: float
    num_labels: int
    seed: int
    top1: float
    top5: float
    correct: int
    n_test: int
    params: int
    samples_seen: int
    pretrain_samples: int
    teacher_samples: int
    wall_s: float
    total_wall_s: float
    images_per_s: float
    extra_data: str
    commit: str
    dirty: bool
    machine: str
    device: str
    precision: str
    run: str
    fingerprint: str
    split_hash: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for error in self._errors():
            raise DataError(f"{self.run}: {error}")

    def _errors(self) -> Iterable[str]:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float | int) and not (math.isfinite(value) and value >= 0):
                yield f"{each.name} must be finite and not negative, got {value}"
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                yield f"{name} must be finite, got {value}"
        arm = ARMS.get((self.init, self.token_labels), self.arm)
        if self.arm != arm:
            yield f"arm must be {arm!r} for this init and these token labels, got {self.arm!r}"
        if self.n_test == 0 or self.num_labels == 0:
            yield f"no images: n_test {self.n_test}, num_labels {self.num_labels}"
        elif self.correct > self.n_test:
            yield f"{self.correct} correct of {self.n_test} test images"
        elif abs(self.correct / self.n_test - self.top1) * self.n_test > 0.5:
            yield f"top1 is {self.top1}, but {self.correct} of {self.n_test} images are correct"
        if self.top5 > 1:
            yield f"top5 must be in [0, 1], got {self.top5}"
        if not 0 < self.label_fraction <= 1:
            yield f"label_fraction must be in (0, 1], got {self.label_fraction}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one dataset, model, init, token labels and label fraction, over seeds.

    Figures without a suffix are means over the runs.

    Attributes:
        dataset: Name of the dataset.
        model: Name of the model.
        arm: Name of the pair (init, token_labels).
        init: Where the weights come from: ``scratch``, or the stage of a run, mostly ``pretrain``.
        token_labels: Whether stage 2 was supervised patch by patch as well.
        label_fraction: Part of the training labels that was used, in (0, 1].
        num_labels: Labelled training images.
        num_seeds: Different seeds.
        seeds: The seeds, in ascending order, one for each run.
        n_test: Test images.
        top1_mean: Mean accuracy, in [0, 1].
        top1_std: Sample standard deviation over the runs; ``None`` with one seed.
        top1_low: Lower end of the Wilson 95 % interval; ``None`` with several seeds.
        top1_high: Upper end of that interval; ``None`` with several seeds.
        top5_mean: Mean top-5 accuracy, in [0, 1].
        top5_std: Sample standard deviation over the runs; ``None`` with one seed.
        params: Parameters of the model.
        samples_seen: Supervised images of stage 2, repeats counted.
        pretrain_samples: Images of the pretraining, repeats counted.
        teacher_samples: Images of the training of the teacher, repeats counted.
        wall_s: Time of stage 2 alone.
        total_wall_s: Time with all that the run builds on.
        images_per_s: Training speed of stage 2.
        extra_data: Data beyond this dataset, or ``none``.
        commit: Commits of the code, separated by commas.
        best: Whether no row of the dataset has a higher mean accuracy.
        figures: Other figures, by the paths of ``figures.FIGURES``.
    """

    dataset: str
    model: str
    arm: str
    init: str
    token_labels: bool
    label_fraction: float
    num_labels: int
    num_seeds: int
    seeds: tuple[int, ...]
    n_test: int
    top1_mean: float
    top1_std: float | None
    top1_low: float | None
    top1_high: float | None
    top5_mean: float
    top5_std: float | None
    params: int
    samples_seen: float
    pretrain_samples: float
    teacher_samples: float
    wall_s: float
    total_wall_s: float
    images_per_s: float
    extra_data: str
    commit: str
    best: bool
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        count: Test images whose confidence falls in it.
        confidence: Their mean confidence, in [0, 1]; 0 without images.
        accuracy: The part of them that is classified correctly; 0 without images.
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the pictures of a row are drawn of; counts are summed over its runs.

    Attributes:
        class_names: In the order of the confusion matrix.
        confusion: Test images by true class (rows) and predicted class (columns).
        reliability: 15 bins of equal width of the largest probability, as the network gives it.
        reliability_scaled: The same after temperature scaling.
        attention: PNG picture of where the network of the first seed looks; ``None`` without.
    """

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]
    reliability_scaled: tuple[Bin, ...]
    attention: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Everything that a leaderboard shows.

    Attributes:
        title: Its heading.
        rows: What ``build_rows`` made of ``entries``.
        entries: The scored runs.
        comparisons: Paired tests between rows of one dataset.
        evidence: What is drawn of a row, by ``row_name``.
        references: Published figures on the same datasets, marked as such.
        protocol: How each group of figures was measured: its name, and a sentence.
        notes: What else is to be said, such as runs that were left out.
    """

    title: str
    rows: Sequence[Row]
    entries: Sequence[Entry]
    comparisons: Sequence[Comparison] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    references: Sequence[Reference] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


ScoredT = TypeVar("ScoredT", Entry, Row)


def row_name(row: Entry | Row) -> str:
    """Name a row within its dataset: arm, model and, if not all labels were used, their part."""
    part = f", {100 * row.label_fraction:g} % of the labels" if row.label_fraction < 1 else ""
    return f"{row.arm}, {row.model}{part}"


def build_rows(entries: Sequence[Entry]) -> list[Row]:
    """Average ``entries`` over seeds.

    Returns:
        Rows ordered by dataset, model, label fraction (the largest first) and arm as in ``ARMS``;
        other arms come last.
    """
    groups = _row_groups(entries)
    highest: dict[str, float] = {}
    for group in groups:
        top1 = fmean(entry.top1 for entry in group)
        highest[group[0].dataset] = max(top1, highest.get(group[0].dataset, 0.0))
    return [_build_row(group, highest[group[0].dataset]) for group in groups]


def wilson_interval(correct: int, n_test: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of an accuracy, in [0, 1].

    Source:
        Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference,
        Journal of the American Statistical Association 22, 209-212.
    """
    interval = binomtest(correct, n_test).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def warnings_of(entries: Sequence[Entry]) -> list[str]:
    """Say what keeps ``entries`` from being compared, or their code from being found again."""
    messages = []
    for dataset, group in _by_dataset(entries):
        for attribute, verb in (
            ("fingerprint", "trained on different versions of the data"),
            ("split_hash", "scored on different test splits"),
        ):
            values = _distinct(getattr(entry, attribute) for entry in group)
            if len(values) > 1:
                short = ", ".join(value[:12] for value in values)
                messages.append(
                    f"{dataset}: the runs were {verb} ({short}); their rows are not comparable"
                )
        machines = _distinct(f"{e.machine} ({e.device}, {e.precision})" for e in group)
        if len(machines) > 1:
            messages.append(
                f"{dataset}: the runs used different machines, devices or precisions "
                f"({'; '.join(machines)}); their times are not comparable"
            )
    for group in _row_groups(entries):
        messages += _warnings_of_row(group)
    messages += _warnings_of_budgets(entries)
    commits = _distinct(entry.commit for entry in entries)
    if len(commits) > 1:
        short = ", ".join(commit[:7] for commit in commits)
        messages.append(f"the runs come from {len(commits)} commits ({short})")
    dirty = [entry for entry in entries if entry.dirty]
    if dirty:
        short = ", ".join(_distinct(entry.commit[:7] for entry in dirty))
        messages.append(
            f"{len(dirty)} of {len(entries)} runs used code with uncommitted changes on top of "
            f"commit {short}, which cannot be restored from the commit"
        )
    return messages


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say in plain sentences, for each dataset, what its rows show and what they cannot.

    Rows are compared within one dataset, model and label fraction.
    """
    sentences = []
    for dataset, of_dataset in _by_dataset(rows):
        models = _distinct(row.model for row in of_dataset)
        fractions = {row.label_fraction for row in of_dataset}
        for _, group in groupby(of_dataset, key=lambda row: (row.model, row.label_fraction)):
            compared = list(group)
            parts = [dataset]
            if len(models) > 1:
                parts.append(compared[0].model)
            if len(fractions) > 1:
                parts.append(f"{100 * compared[0].label_fraction:g} % of the labels")
            sentences.append(f"{', '.join(parts)}: {_compare(compared)}.")
    return sentences


def _build_row(group: Sequence[Entry], highest: float) -> Row:
    first = group[0]
    seeds = tuple(entry.seed for entry in group)
    several = len(set(seeds)) > 1
    top1 = fmean(entry.top1 for entry in group)
    # A seed that was run twice saw the same test images: its runs are averaged, not pooled.
    correct = round(fmean(entry.correct for entry in group))
    low, high = (None, None) if several else wilson_interval(correct, first.n_test)

    def mean(attribute: str) -> float:
        return fmean(getattr(entry, attribute) for entry in group)

    return Row(
        dataset=first.dataset,
        model=first.model,
        arm=first.arm,
        init=first.init,
        token_labels=first.token_labels,
        label_fraction=first.label_fraction,
        num_labels=first.num_labels,
        num_seeds=len(set(seeds)),
        seeds=seeds,
        n_test=first.n_test,
        top1_mean=top1,
        top1_std=stdev(entry.top1 for entry in group) if several else None,
        top1_low=low,
        top1_high=high,
        top5_mean=mean("top5"),
        top5_std=stdev(entry.top5 for entry in group) if several else None,
        params=first.params,
        samples_seen=mean("samples_seen"),
        pretrain_samples=mean("pretrain_samples"),
        teacher_samples=mean("teacher_samples"),
        wall_s=mean("wall_s"),
        total_wall_s=mean("total_wall_s"),
        images_per_s=mean("images_per_s"),
        extra_data=", ".join(_distinct(entry.extra_data for entry in group)),
        commit=", ".join(_distinct(entry.commit for entry in group)),
        best=top1 >= highest,
        figures=_average_figures(group, several=several),
    )


def _average_figures(group: Sequence[Entry], *, several: bool) -> dict[str, Figure]:
    names = _distinct(name for entry in group for name in entry.metrics)
    values = {name: [e.metrics[name] for e in group if name in e.metrics] for name in names}
    return {name: Figure.of(values[name], several_seeds=several) for name in names}


def _compare(rows: Sequence[Row]) -> str:
    ranked = sorted(rows, key=lambda row: -row.top1_mean)
    top = ranked[0]
    if len(ranked) == 1:
        return f"only {top.arm!r} was run, top-1 {_score(top)}; there is nothing to compare it with"
    tied = [row for row in ranked if row.top1_mean == top.top1_mean]
    scratch = next((row for row in ranked if row.arm == SCRATCH), None)
    others = [row for row in ranked if row not in tied]
    if not others:
        return f"{_and(repr(row.arm) for row in tied)} have the same top-1, {_score(top)}"
    reference = scratch if scratch in others else others[0]
    verb = "share" if len(tied) > 1 else "has"
    text = (
        f"{_and(repr(row.arm) for row in tied)} {verb} the highest top-1, {_score(top)}, "
        f"{100 * (top.top1_mean - reference.top1_mean):.2f} points above "
        f"{'' if reference is scratch else 'the next, '}{reference.arm!r} at {_score(reference)}; "
        f"{_overlap(top, reference)}"
    )
    return text if scratch else f"{text}; there is no run from scratch to compare with"


def _overlap(top: Row, other: Row) -> str:
    images = f"{min(top.n_test, other.n_test):,} test images"
    if top.top1_low is not None and other.top1_high is not None:
        if top.top1_low <= other.top1_high:
            return f"the intervals overlap: one seed and {images} cannot tell them apart"
        return (
            f"the intervals do not overlap on {images}, but one seed does not show how much seeds "
            "differ"
        )
    if top.top1_std is None or other.top1_std is None:
        return "one of them has a single seed, so their spreads cannot be compared"
    seeds = f"{min(top.num_seeds, other.num_seeds)} seeds"
    if top.top1_mean - other.top1_mean <= top.top1_std + other.top1_std:
        return f"the ranges of mean +- std overlap: {seeds} cannot tell them apart"
    return f"over {seeds}, the ranges of mean +- std do not overlap (no paired test was made)"


def _score(row: Row) -> str:
    if row.top1_std is None:
        return f"{100 * row.top1_mean:.2f} %"
    return f"{100 * row.top1_mean:.2f} +- {100 * row.top1_std:.2f} %"


def _warnings_of_row(group: Sequence[Entry]) -> Iterable[str]:
    first = group[0]
    name = f"{first.dataset}, {first.model}, {first.arm}"
    repeated = [seed for seed, count in Counter(e.seed for e in group).items() if count > 1]
    if repeated:
        seeds = ", ".join(map(str, repeated))
        yield f"{name}: seed {seeds} was run more than once; every run counts in the mean"
    if len({entry.samples_seen for entry in group}) > 1:
        yield f"{name}: the row averages runs that saw different numbers of supervised images"
    if len({entry.params for entry in group}) > 1:
        yield f"{name}: the row averages networks of different sizes"


def _warnings_of_budgets(entries: Sequence[Entry]) -> Iterable[str]:
    ordered = sorted(entries, key=_row_key)
    for key, group in groupby(ordered, key=lambda entry: _row_key(entry)[:3]):
        seen: dict[str, list[int]] = {}
        for entry in group:
            seen.setdefault(entry.arm, []).append(entry.samples_seen)
        if len({fmean(counts) for counts in seen.values()}) > 1:
            text = ", ".join(f"{arm} {fmean(counts):,.0f}" for arm, counts in seen.items())
            yield (
                f"{key[0]}, {key[1]}: the arms saw different numbers of supervised images "
                f"({text}); part of a difference may be due to that"
            )


def _row_groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    ordered = sorted(entries, key=lambda entry: (*_row_key(entry), entry.seed, entry.run))
    return [list(group) for _, group in groupby(ordered, key=_row_key)]


def _row_key(entry: Entry) -> tuple[str, str, float, int, str, bool]:
    arm = (entry.init, entry.token_labels)
    place = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
    return entry.dataset, entry.model, -entry.label_fraction, place, *arm


def _by_dataset(items: Sequence[ScoredT]) -> list[tuple[str, list[ScoredT]]]:
    ordered = sorted(items, key=lambda item: item.dataset)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda i: i.dataset)]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _and(names: Iterable[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
