"""Rows of a leaderboard: scored runs, averaged over seeds, and what may be said of them."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations, groupby
from statistics import fmean, stdev
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from smallvit.bench.comparison import Comparison, compare, correct_for_number
from smallvit.bench.figures import Figure, kind_of, label_of
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
MOST_VARIED = 3  # settings that are named; of more, a hash is
HASH_SHOWN = 12  # characters, which also hold the name of a split's metric
# What keeps runs of a dataset apart, and how to say that they differ in it.
VARIANTS = {
    "fingerprint": ("data", "trained on different versions of the data"),
    "split_hash": ("split", "scored on different test splits"),
    "selected_on": ("chosen on", "chosen on different splits"),
}


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
        selected_on: Split on which the weights were chosen.
        metrics: Other figures of the run, by the paths of ``figures.FIGURES``.
        settings: What its recipe says, by path, without the seed and what rows are told apart by
            anyway.
        variant: What tells its data or protocol from those of other runs of the dataset; empty
            where nothing does. ``separate`` fills it in.
        variation: The same of its settings, among runs of its arm.

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
    selected_on: str = "val"
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    variation: str = ""

    @property
    def shown_arm(self) -> str:
        """Name of the arm, with its variation where runs differ in their settings."""
        return f"{self.arm} ({self.variation})" if self.variation else self.arm

    @property
    def shown_dataset(self) -> str:
        """Name of the dataset, with its variant where runs differ in it."""
        return f"{self.dataset} ({self.variant})" if self.variant else self.dataset

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
        evidence: What is drawn of a row, by ``report_page.evidence_key``.
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
    arm = row.shown_arm if isinstance(row, Entry) else row.arm
    part = f", {100 * row.label_fraction:g} % of the labels" if row.label_fraction < 1 else ""
    return f"{arm}, {row.model}{part}"


def separate(entries: Sequence[Entry]) -> list[Entry]:
    """Keep runs apart that differ in more than their seed.

    Runs of one dataset whose data, test split or choice of weights differ get a variant: they share
    no row, no section and no comparison. Runs of one arm whose settings differ get a variation:
    they share no row.
    """
    separated = []
    for entry in entries:
        of_dataset = [other for other in entries if other.dataset == entry.dataset]
        parts = [
            f"{what} {getattr(entry, attribute)[:HASH_SHOWN]}"
            for attribute, (what, _) in VARIANTS.items()
            if len({getattr(other, attribute) for other in of_dataset}) > 1
        ]
        separated.append(replace(entry, variant=", ".join(parts)))
    of_arm: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in separated:
        of_arm.setdefault(_row_key(entry), []).append(entry)
    return [replace(entry, variation=_vary(entry, of_arm[_row_key(entry)])) for entry in separated]


def _vary(entry: Entry, others: Sequence[Entry]) -> str:
    """Name the settings of an entry in which others of its arm differ from each other."""
    names = _distinct(name for other in others for name in other.settings)
    varied = [
        name
        for name in names
        if any(other.settings.get(name) != entry.settings.get(name) for other in others)
    ]
    if not varied:
        return ""
    if len(varied) > MOST_VARIED:
        said = repr([(name, entry.settings.get(name)) for name in sorted(entry.settings)])
        return f"settings {hashlib.sha256(said.encode()).hexdigest()[:HASH_SHOWN]}"
    parts = ((name.rpartition(".")[2], entry.settings.get(name)) for name in varied)
    return ", ".join(f"{leaf} {value}".replace("_", " ") for leaf, value in parts)


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
        dataset = group[0].shown_dataset
        highest[dataset] = max(top1, highest.get(dataset, 0.0))
    return [_build_row(group, highest[group[0].shown_dataset]) for group in groups]


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
        for attribute, (_, verb) in VARIANTS.items():
            values = _distinct(getattr(entry, attribute) for entry in group)
            if len(values) > 1:
                short = ", ".join(value[:HASH_SHOWN] for value in values)
                messages.append(
                    f"{dataset}: the runs were {verb} ({short}); their rows are kept apart and not "
                    "compared"
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


def verdict(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """Say in plain sentences, for each dataset, what its rows show and what they cannot.

    Rows are compared within one dataset, model and label fraction. ``better`` is said only where a
    paired test says it.
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
            sentences.append(f"{', '.join(parts)}: {_compare(compared, comparisons)}.")
    return sentences


def row_of(row: Row, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that a row averages."""
    name = row.dataset, row_name(row)
    return [entry for entry in entries if (entry.shown_dataset, row_name(entry)) == name]


def sum_evidence(evidence: Sequence[Evidence]) -> Evidence:
    """Add up the counts of a row's runs; the attention is that of the first run that has any."""
    first = evidence[0]
    confusion = np.sum([each.confusion for each in evidence], axis=0).tolist()
    return Evidence(
        class_names=first.class_names,
        confusion=tuple(tuple(row) for row in confusion),
        reliability=_sum_bins([each.reliability for each in evidence]),
        reliability_scaled=_sum_bins([each.reliability_scaled for each in evidence]),
        attention=next((each.attention for each in evidence if each.attention), None),
    )


def _sum_bins(runs: Sequence[Sequence[Bin]]) -> tuple[Bin, ...]:
    summed = []
    for bins in zip(*runs, strict=True):
        count = sum(each.count for each in bins)
        confidence, accuracy = (
            sum(each.count * getattr(each, name) for each in bins) / max(count, 1)
            for name in ("confidence", "accuracy")
        )
        summed.append(Bin(count=count, confidence=confidence, accuracy=accuracy))
    return tuple(summed)


def compare_rows(
    rows: Sequence[Row], entries: Sequence[Entry], correct: Mapping[str, Bool[np.ndarray, " N"]]
) -> list[Comparison]:
    """Compare rows of one dataset by paired tests on the images and seeds that they share.

    All rows of one model and label fraction are compared with each other, and the best of each
    model and fraction with those of the others. Rows without a common seed, or of which a seed was
    run more than once, are left out.

    Args:
        rows: What ``build_rows`` made of ``entries``.
        entries: The scored runs.
        correct: Whether each test image is classified correctly, by the path of the run.
    """
    answers = {
        (group[0].shown_dataset, row_name(group[0])): {
            entry.seed: correct[entry.run] for entry in group
        }
        for group in _row_groups(entries)
    }
    comparisons = []
    for dataset, of_dataset in _by_dataset(rows):
        groups = [
            list(group)
            for _, group in groupby(of_dataset, key=lambda row: (row.model, row.label_fraction))
        ]
        pairs = [pair for group in groups for pair in combinations(group, 2)]
        pairs += combinations([max(group, key=lambda row: row.top1_mean) for group in groups], 2)
        found = []
        for pair in pairs:
            first, second = sorted(pair, key=lambda row: -row.top1_mean)
            names = row_name(first), row_name(second)
            ours, theirs = (answers[dataset, name] for name in names)
            seeds = sorted(ours.keys() & theirs.keys())
            repeated = any(len(row.seeds) > row.num_seeds for row in pair)
            if seeds and not repeated:
                stacked = [np.stack([side[seed] for seed in seeds]) for side in (ours, theirs)]
                found.append(compare(*stacked, dataset=dataset, names=names))
        comparisons += correct_for_number(found)
    return comparisons


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
        dataset=first.shown_dataset,
        model=first.model,
        arm=first.shown_arm,
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


def _compare(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
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
        f"{_say_test(top, reference, comparisons)}"
    )
    return text if scratch else f"{text}; there is no run from scratch to compare with"


def _say_test(top: Row, other: Row, comparisons: Sequence[Comparison]) -> str:
    if any(len(row.seeds) > row.num_seeds for row in (top, other)):
        return "a seed was run more than once, so no paired test was made"
    named = {row_name(top), row_name(other)}
    found = [c for c in comparisons if c.dataset == top.dataset and {c.first, c.second} == named]
    if not found:
        return "they share no seed, so no paired test was made"
    test = found[0]
    above = test.difference if test.first == row_name(top) else -test.difference
    images = f"{test.n_test:,} test images"
    seeds = "one seed" if test.num_seeds == 1 else f"{test.num_seeds} seeds"
    if test.num_seeds < max(top.num_seeds, other.num_seeds):
        seeds += f" that both have, {100 * above:+.2f} points"
    said = f"{test.test}, {seeds}, {images}, p = {test.p_adjusted:.2g}"
    if test.verdict == "not told apart":
        return f"a paired test does not tell them apart ({said})"
    if above < 0:
        return (
            f"but on the seeds that both have it is {-100 * above:.2f} points below, worse by a "
            f"paired test ({said})"
        )
    caution = ", but one seed does not show how much seeds differ" if test.num_seeds == 1 else ""
    return f"better by a paired test ({said}){caution}"


def _score(row: Row) -> str:
    if row.top1_std is None:
        return f"{100 * row.top1_mean:.2f} %"
    return f"{100 * row.top1_mean:.2f} +- {100 * row.top1_std:.2f} %"


def _warnings_of_row(group: Sequence[Entry]) -> Iterable[str]:
    first = group[0]
    name = f"{first.dataset}, {first.model}, {first.shown_arm}"
    repeated = [seed for seed, count in Counter(e.seed for e in group).items() if count > 1]
    if repeated:
        seeds = ", ".join(map(str, repeated))
        yield f"{name}: seed {seeds} was run more than once; every run counts in the mean"
    if len({entry.samples_seen for entry in group}) > 1:
        yield f"{name}: the row averages runs that saw different numbers of supervised images"
    if len({entry.params for entry in group}) > 1:
        yield f"{name}: the row averages networks of different sizes"
    partial = _distinct(
        figure
        for entry in group
        for figure in entry.metrics
        if kind_of(figure).column and not all(figure in other.metrics for other in group)
    )
    if partial:
        yield f"{name}: only some runs of the row have {', '.join(map(label_of, partial))}"


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


def _row_key(entry: Entry) -> tuple[str, str, float, int, str, bool, str]:
    arm = (entry.init, entry.token_labels)
    place = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
    key = entry.shown_dataset, entry.model, -entry.label_fraction, place
    return *key, *arm, entry.variation


def _by_dataset(items: Sequence[ScoredT]) -> list[tuple[str, list[ScoredT]]]:
    ordered = sorted(items, key=lambda item: item.dataset)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda i: i.dataset)]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _and(names: Iterable[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
