"""Rows of a leaderboard: scored runs that differ in nothing but their seed, averaged."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binomtest

from smallvit.core.errors import DataError
from smallvit.evaluate.yardstick import Yardstick

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
class Figure:
    """One figure of a row: its mean over the row's runs.

    Attributes:
        mean: Mean over the runs that have it.
        std: Their sample standard deviation; ``None`` with one seed.
        n: Number of those runs.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float], *, several_seeds: bool) -> "Figure":
        """Average the values of a row's runs."""
        std = stdev(values) if several_seeds and len(values) > 1 else None
        return cls(mean=fmean(values), std=std, n=len(values))


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
        yardstick: What its accuracy is held against; ``None`` where that is not known.
        metrics: Other figures of the run, by the paths of ``figures.kind_of``.
        missing: Why a figure that was asked for could not be had, by its path.
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
    yardstick: Yardstick | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
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
        best: Whether no row of the dataset has a higher mean accuracy, rows that are ``faulty``
            left out.
        commonest: The class that most test images have; empty where that is not known.
        commonest_share: Accuracy of naming it always, in [0, 1]; ``None`` where it is not known.
        uneven: Whether the test images of the classes differ so much in number that accuracy and
            mean per class say different things.
        faulty: Whether half of the runs or more have an accuracy that is none to go by.
        figures: Other figures, by the paths of ``figures.kind_of``.
        missing: Why no run has a figure that was asked for, by its path.
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
    commonest: str = ""
    commonest_share: float | None = None
    uneven: bool = False
    faulty: bool = False
    figures: Mapping[str, Figure] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def from_scratch(self) -> bool:
        """Whether it has random weights and no token labels, whatever its other settings."""
        return ARMS.get((self.init, self.token_labels)) == SCRATCH


def row_name(row: Entry | Row) -> str:
    """Name a row within its dataset: arm, model and, if not all labels were used, their part."""
    arm = row.shown_arm if isinstance(row, Entry) else row.arm
    part = f", {100 * row.label_fraction:g} % of the labels" if row.label_fraction < 1 else ""
    return f"{arm}, {row.model}{part}"


def row_of(row: Row, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that a row averages."""
    name = row.dataset, row_name(row)
    return [entry for entry in entries if (entry.shown_dataset, row_name(entry)) == name]


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
        of_arm.setdefault(row_key(entry), []).append(entry)
    return [replace(entry, variation=_vary(entry, of_arm[row_key(entry)])) for entry in separated]


def _vary(entry: Entry, others: Sequence[Entry]) -> str:
    """Name the settings of an entry in which others of its arm differ from each other."""
    names = distinct(name for other in others for name in other.settings)
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
    groups = row_groups(entries)
    highest: dict[str, float] = {}
    for group in groups:
        if not _is_faulty(group):
            top1 = fmean(entry.top1 for entry in group)
            dataset = group[0].shown_dataset
            highest[dataset] = max(top1, highest.get(dataset, 0.0))
    return [_build_row(group, highest.get(group[0].shown_dataset, 0.0)) for group in groups]


def _is_faulty(group: Sequence[Entry]) -> bool:
    faulty = [entry for entry in group if entry.yardstick is not None and entry.yardstick.fault]
    return 2 * len(faulty) >= len(group)


def wilson_interval(correct: int, n_test: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of an accuracy, in [0, 1].

    Source:
        Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference,
        Journal of the American Statistical Association 22, 209-212.
    """
    interval = binomtest(correct, n_test).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _build_row(group: Sequence[Entry], highest: float) -> Row:
    first = group[0]
    seeds = tuple(entry.seed for entry in group)
    several = len(set(seeds)) > 1
    top1 = fmean(entry.top1 for entry in group)
    faulty = _is_faulty(group)
    yardstick = next((entry.yardstick for entry in group if entry.yardstick is not None), None)
    figures = _average_figures(group, several=several)
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
        extra_data=", ".join(distinct(entry.extra_data for entry in group)),
        commit=", ".join(distinct(entry.commit for entry in group)),
        best=top1 >= highest and not faulty,
        commonest=yardstick.commonest if yardstick else "",
        commonest_share=yardstick.commonest_share if yardstick else None,
        uneven=yardstick is not None and yardstick.uneven,
        faulty=faulty,
        figures=figures,
        missing={
            name: reason
            for entry in group
            for name, reason in entry.missing.items()
            if name not in figures
        },
    )


def _average_figures(group: Sequence[Entry], *, several: bool) -> dict[str, Figure]:
    names = distinct(name for entry in group for name in entry.metrics)
    values = {name: [e.metrics[name] for e in group if name in e.metrics] for name in names}
    return {name: Figure.of(values[name], several_seeds=several) for name in names}


def row_groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each row, rows in their order, entries by seed."""
    ordered = sorted(entries, key=lambda entry: (*row_key(entry), entry.seed, entry.run))
    return [list(group) for _, group in groupby(ordered, key=row_key)]


def row_key(entry: Entry) -> tuple[str, str, float, int, str, bool, str]:
    """Return what makes an entry's row, in the order in which rows are shown."""
    arm = (entry.init, entry.token_labels)
    place = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
    key = entry.shown_dataset, entry.model, -entry.label_fraction, place
    return *key, *arm, entry.variation


def distinct(values: Iterable[str]) -> list[str]:
    """Return each value once, in the order of their first occurrence."""
    return list(dict.fromkeys(values))
