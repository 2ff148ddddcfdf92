"""Rows of a leaderboard: scored runs that differ in nothing but their seed, averaged."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
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
MEANS = (  # of a run's attributes that a row shows the mean of
    *("samples_seen", "pretrain_samples", "teacher_samples"),
    *("wall_s", "total_wall_s", "images_per_s"),
)
ROW_FIELDS = (  # of the files, without the figures
    *("dataset", "model", "arm", "init", "token_labels", "label_fraction", "num_labels"),
    *("num_seeds", "seeds", "n_test", "top1_mean", "top1_std", "top1_low", "top1_high"),
    *("top5_mean", "top5_std", "params", *MEANS, "extra_data", "commit"),
    *("best", "commonest", "commonest_share", "uneven", "faulty"),
)
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
        pretrain_samples: Images of the pretraining that its init comes from, repeats counted.
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
    def arm(self) -> str:
        """Name of the pair (init, token_labels)."""
        other = f"{self.init} start" + " + token labels" * self.token_labels
        return ARMS.get((self.init, self.token_labels), other)

    @property
    def shown_arm(self) -> str:
        """Name of the arm, with its variation where runs differ in their settings."""
        return f"{self.arm} ({self.variation})" if self.variation else self.arm

    @property
    def shown_dataset(self) -> str:
        """Name of the dataset, with its variant where runs differ in it."""
        return f"{self.dataset} ({self.variant})" if self.variant else self.dataset

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes its row, in the order in which rows are shown."""
        arm = (self.init, self.token_labels)
        position = list(ARMS).index(arm) if arm in ARMS else len(ARMS)
        fraction = -self.label_fraction
        return self.shown_dataset, self.model, fraction, position, *arm, self.variation

    def record(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        plain = asdict(self)
        return {"dataset": self.dataset, "model": self.model, "arm": self.arm, **plain}

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

    Attributes:
        entries: The runs, by seed.
        best: Whether no row of the dataset has a higher mean accuracy, rows that are ``faulty``
            left out.
    """

    entries: tuple[Entry, ...]
    best: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other rows."""
        return self.entries[0].key

    @property
    def dataset(self) -> str:
        """Name of the dataset, with its variant."""
        return self.entries[0].shown_dataset

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.entries[0].model

    @property
    def arm(self) -> str:
        """Name of the arm, with its variation."""
        return self.entries[0].shown_arm

    @property
    def name(self) -> str:
        """What it is called within its dataset."""
        part = f", {name_labels(self.label_fraction)}" if self.label_fraction < 1 else ""
        return f"{self.arm}, {self.model}{part}"

    @property
    def from_scratch(self) -> bool:
        """Whether it has random weights and no token labels, whatever its other settings."""
        return self.entries[0].arm == SCRATCH

    @property
    def label_fraction(self) -> float:
        """Part of the training labels that was used, in (0, 1]."""
        return self.entries[0].label_fraction

    @property
    def num_labels(self) -> int:
        """Labelled training images."""
        return self.entries[0].num_labels

    @property
    def n_test(self) -> int:
        """Test images."""
        return self.entries[0].n_test

    @property
    def params(self) -> int:
        """Parameters of the model."""
        return self.entries[0].params

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in ascending order, one for each run."""
        return tuple(entry.seed for entry in self.entries)

    @property
    def num_seeds(self) -> int:
        """Different seeds."""
        return len(set(self.seeds))

    @property
    def repeats_seeds(self) -> bool:
        """Whether a seed was run more than once."""
        return len(self.seeds) > self.num_seeds

    def mean(self, attribute: str) -> float:
        """Average what an attribute of its runs holds."""
        return fmean(getattr(entry, attribute) for entry in self.entries)

    def figure(self, attribute: str) -> Figure:
        """Return its mean and sample standard deviation over the runs."""
        values = [getattr(entry, attribute) for entry in self.entries]
        return Figure.of(values, several_seeds=self.num_seeds > 1)

    @cached_property
    def top1(self) -> Figure:
        """Accuracy, in [0, 1]."""
        return self.figure("top1")

    @property
    def top1_mean(self) -> float:
        """Mean accuracy, in [0, 1]."""
        return self.top1.mean

    @property
    def top1_std(self) -> float | None:
        """Its sample standard deviation over the runs; ``None`` with one seed."""
        return self.top1.std

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The Wilson 95 % interval of the accuracy; ``None`` with several seeds."""
        if self.num_seeds > 1:
            return None
        # A seed that was run twice saw the same test images: its runs are averaged, not pooled.
        return wilson_interval(round(self.mean("correct")), self.n_test)

    @property
    def extra_data(self) -> str:
        """Data beyond this dataset, or ``none``."""
        return ", ".join(distinct(entry.extra_data for entry in self.entries))

    @property
    def commit(self) -> str:
        """Commits of the code, separated by commas."""
        return ", ".join(distinct(entry.commit for entry in self.entries))

    @property
    def yardstick(self) -> Yardstick | None:
        """What its accuracy is held against; ``None`` where that is not known."""
        return next((entry.yardstick for entry in self.entries if entry.yardstick), None)

    @property
    def commonest(self) -> str:
        """The class that most test images have; empty where that is not known."""
        return self.yardstick.commonest if self.yardstick else ""

    @property
    def commonest_share(self) -> float | None:
        """Accuracy of naming it always, in [0, 1]; ``None`` where it is not known."""
        return self.yardstick.commonest_share if self.yardstick else None

    @property
    def uneven(self) -> bool:
        """Whether accuracy and mean per class say different things: classes differ in number."""
        return self.yardstick is not None and self.yardstick.uneven

    @cached_property
    def faulty(self) -> bool:
        """Whether half of the runs or more have an accuracy that is none to go by."""
        faults = [entry for entry in self.entries if entry.yardstick and entry.yardstick.fault]
        return 2 * len(faults) >= len(self.entries)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Other figures, by the paths of ``figures.kind_of``."""
        values: dict[str, list[float]] = {}
        for entry in self.entries:
            for name, value in entry.metrics.items():
                values.setdefault(name, []).append(value)
        several = self.num_seeds > 1
        return {name: Figure.of(found, several_seeds=several) for name, found in values.items()}

    @cached_property
    def missing(self) -> dict[str, str]:
        """Why no run has a figure that was asked for, by its path."""
        reasons = {name: why for entry in self.entries for name, why in entry.missing.items()}
        return {name: why for name, why in reasons.items() if name not in self.figures}

    def record(self) -> dict[str, Any]:
        """Return everything but figures as JSON and CSV have it, with means over the runs."""
        low, high = self.interval or (None, None)
        others = {
            "init": self.entries[0].init,
            "token_labels": self.entries[0].token_labels,
            "top1_low": low,
            "top1_high": high,
            "top5_mean": self.mean("top5"),
            "top5_std": self.figure("top5").std,
            **{name: self.mean(name) for name in MEANS},
        }
        return {
            name: others[name] if name in others else getattr(self, name) for name in ROW_FIELDS
        }


def format_part(fraction: float) -> str:
    """Write a part of all labels as a percentage."""
    return f"{100 * fraction:g} %"


def name_labels(fraction: float) -> str:
    """Say which part of the labels was used."""
    return f"{format_part(fraction)} of the labels"


def told_apart(rows: Sequence[Row], name: Callable[[float], str] = name_labels) -> list[list[str]]:
    """Return words for the model and labels of each row, where rows of a dataset differ in them.

    Args:
        rows: Of one dataset.
        name: Writes a share of the labels.
    """
    several_models = len({row.model for row in rows}) > 1
    several_shares = len({row.label_fraction for row in rows}) > 1
    return [
        [row.model] * several_models + [name(row.label_fraction)] * several_shares for row in rows
    ]


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
        of_arm.setdefault(entry.key, []).append(entry)
    return [replace(entry, variation=_vary(entry, of_arm[entry.key])) for entry in separated]


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
        text = repr([(name, entry.settings.get(name)) for name in sorted(entry.settings)])
        return f"settings {hashlib.sha256(text.encode()).hexdigest()[:HASH_SHOWN]}"
    parts = ((name.rpartition(".")[2], entry.settings.get(name)) for name in varied)
    return ", ".join(f"{leaf} {value}".replace("_", " ") for leaf, value in parts)


def build_rows(entries: Sequence[Entry]) -> list[Row]:
    """Average ``entries`` over seeds.

    Returns:
        Rows ordered by dataset, model, label fraction (the largest first) and arm as in ``ARMS``;
        other arms come last.
    """
    rows = [Row(entries=group) for group in row_groups(entries)]
    highest: dict[str, float] = {}
    for row in rows:
        if not row.faulty:
            highest[row.dataset] = max(row.top1_mean, highest.get(row.dataset, 0.0))
    return [
        replace(row, best=not row.faulty and row.top1_mean >= highest[row.dataset]) for row in rows
    ]


def wilson_interval(correct: int, n_test: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of an accuracy, in [0, 1].

    Source:
        Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference,
        Journal of the American Statistical Association 22, 209-212.
    """
    interval = binomtest(correct, n_test).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def row_groups(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Return the entries of each row, rows in their order, entries by seed."""
    ordered = sorted(entries, key=lambda entry: (*entry.key, entry.seed, entry.run))
    return [tuple(group) for _, group in groupby(ordered, key=lambda entry: entry.key)]


def distinct(values: Iterable[str]) -> list[str]:
    """Return each value once, in the order of their first occurrence."""
    return list(dict.fromkeys(values))
