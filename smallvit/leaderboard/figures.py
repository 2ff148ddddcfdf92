"""The names, units and directions of a leaderboard's figures.

A figure is a number with a path for a name, such as ``corruption/generated/fog/3``. Its path says
how it was made: two protocols never share one.
"""

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from smallvit.core.errors import ConfigError

Unit = Literal["fraction", "nats", "ratio", "count", "images/s", "ms", "MiB"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class FigureKind:
    """What a group of figures is.

    Attributes:
        group: Heading that it stands under.
        label: What a column calls it; ``{}`` takes what is left of the path.
        unit: ``fraction`` is in [0, 1] and shown in percent.
        better: Which way is better; ``None`` where neither is.
        column: Whether the tables show it; the rest is drawn, or in the JSON alone.
    """

    group: str
    label: str
    unit: Unit
    better: Better | None = None
    column: bool = True


# By path; an entry that ends in a slash stands for all that begin with it. The longest fits.
FIGURES: dict[str, FigureKind] = {
    "accuracy/mean_per_class": FigureKind(
        group="Accuracy", label="mean per class", unit="fraction", better="higher"
    ),
    "accuracy/nll": FigureKind(group="Calibration", label="NLL", unit="nats", better="lower"),
    "accuracy/brier": FigureKind(group="Calibration", label="Brier", unit="ratio", better="lower"),
    "calibration/ece": FigureKind(
        group="Calibration", label="ECE", unit="fraction", better="lower"
    ),
    "calibration/ece_scaled": FigureKind(
        group="Calibration", label="ECE, scaled", unit="fraction", better="lower"
    ),
    "calibration/nll_scaled": FigureKind(
        group="Calibration", label="NLL, scaled", unit="nats", better="lower"
    ),
    "calibration/temperature": FigureKind(group="Calibration", label="temperature", unit="ratio"),
    "features/knn": FigureKind(group="Backbone", label="k-NN", unit="fraction", better="higher"),
    "features/linear": FigureKind(
        group="Backbone", label="linear probe", unit="fraction", better="higher"
    ),
    "corruption/generated": FigureKind(
        group="Corruptions", label="generated", unit="fraction", better="higher"
    ),
    "corruption/generated_clean": FigureKind(
        group="Corruptions", label="same images, clean", unit="fraction", better="higher"
    ),
    "corruption/generated_extra": FigureKind(
        group="Corruptions", label="generated, 4 extra", unit="fraction", better="higher"
    ),
    "corruption/official": FigureKind(
        group="Corruptions", label="official", unit="fraction", better="higher"
    ),
    "corruption/official_extra": FigureKind(
        group="Corruptions", label="official, 4 extra", unit="fraction", better="higher"
    ),
    "corruption/": FigureKind(
        group="Corruptions", label="{}", unit="fraction", better="higher", column=False
    ),
    "attack/fgsm/": FigureKind(
        group="Attacks", label="FGSM {}/255", unit="fraction", better="higher"
    ),
    "attack/pgd/": FigureKind(
        group="Attacks", label="PGD {}/255", unit="fraction", better="higher"
    ),
    "attack/autoattack/": FigureKind(
        group="Attacks", label="AutoAttack {}/255", unit="fraction", better="higher"
    ),
    "ood/": FigureKind(group="OOD", label="{}", unit="fraction", better="higher", column=False),
    "cost/macs": FigureKind(group="Cost", label="multiply-adds", unit="count", better="lower"),
    "cost/images_per_s": FigureKind(
        group="Cost", label="images/s, batch 256", unit="images/s", better="higher"
    ),
    "cost/latency_ms": FigureKind(
        group="Cost", label="latency, batch 1", unit="ms", better="lower"
    ),
    "cost/latency_ms_256": FigureKind(
        group="Cost", label="latency, batch 256", unit="ms", better="lower"
    ),
    "cost/spread/": FigureKind(
        group="Cost", label="spread of rounds, batch {}", unit="fraction", column=False
    ),
    "cost/peak_memory": FigureKind(
        group="Cost", label="peak memory, batch 256", unit="MiB", better="lower"
    ),
}
# The spread of the rounds that a time is the median of: longest minus shortest, over the median.
ROUNDS_OF = {
    "cost/images_per_s": "cost/spread/256",
    "cost/latency_ms": "cost/spread/1",
    "cost/latency_ms_256": "cost/spread/256",
}
OOD_SCORES = ("msp", "max_logit", "energy")
for _score, _label in zip(OOD_SCORES, ("MSP", "max logit", "energy"), strict=True):
    FIGURES[f"ood/auroc/{_score}/"] = FigureKind(
        group="OOD",
        label=f"{{}} AUROC, {_label}",
        unit="fraction",
        better="higher",
        column=_score == "msp",
    )
    FIGURES[f"ood/fpr95/{_score}/"] = FigureKind(
        group="OOD", label=f"{{}} FPR@95, {_label}", unit="fraction", better="lower", column=False
    )


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
    def of(cls, values: list[float], *, several_seeds: bool) -> "Figure":
        """Average the values of a row's runs."""
        std = stdev(values) if several_seeds and len(values) > 1 else None
        return cls(mean=fmean(values), std=std, n=len(values))


def kind_of(name: str) -> FigureKind:
    """Look up what a figure is by its path.

    Raises:
        ConfigError: If nothing is known of it.
    """
    return FIGURES[_key_of(name)]


def label_of(name: str) -> str:
    """Say in words what a figure is.

    Raises:
        ConfigError: If nothing is known of it.
    """
    key = _key_of(name)
    return FIGURES[key].label.format(name.removeprefix(key).replace("_", " "))


def _key_of(name: str) -> str:
    fitting = [
        key for key in FIGURES if key == name or (key.endswith("/") and name.startswith(key))
    ]
    if not fitting:
        raise ConfigError(f"unknown figure {name!r}: a leaderboard has {', '.join(FIGURES)}")
    return max(fitting, key=len)
