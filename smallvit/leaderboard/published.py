"""Published figures, for the reference rows of a leaderboard."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

CORRUPTED = "-c"  # what the names of CIFAR-10-C and its kin add to that of the clean data


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published figure.

    Attributes:
        study: Short name of the study.
        method: What was trained.
        model: Name of the model there.
        params_m: Its parameters, in millions; ``None`` where the study does not say.
        dataset: Name of the dataset here.
        metric: Name of the metric there.
        value: The figure in the study's unit, mostly percent.
        source: Where it stands.
        note: What keeps it from being compared, such as a choice made on the test split.
    """

    study: str
    method: str
    model: str
    params_m: float | None
    dataset: str
    metric: str
    value: float
    source: str
    note: str

    @property
    def of_corruptions(self) -> bool:
        """Whether it was measured on corrupted images."""
        return "corruption" in self.metric

    @property
    def labels(self) -> str:
        """The part of the training labels that was used, as the metric's name says it."""
        return self.metric.partition(" with ")[2] or "all labels"

    @property
    def budget(self) -> str:
        """What is known of its budget and of how it was chosen; no study says the samples seen."""
        return "; ".join(text for text in (self.labels, "samples seen unknown", self.note) if text)


def published_references(datasets: Iterable[str]) -> list[Reference]:
    """Return the published figures that belong beside rows of ``datasets``.

    A variant such as ``cifar10-jpeg`` gets those of ``cifar10``, under that name: what is shown
    for it must say that they were measured on other images.

    Args:
        datasets: Names of datasets, ours or a folder's.

    Returns:
        Figures by dataset in the order of the names, each once; none for a name without any.
    """
    names = dict.fromkeys(name for dataset in datasets if (name := published_name(dataset)))
    return [reference for name in names for reference in _all() if reference.dataset == name]


def published_name(dataset: str) -> str | None:
    """Return the name under which figures of a dataset, or of what it is a variant of, are kept."""
    known = {reference.dataset for reference in _all()}
    fitting = [name for name in known if dataset == name or dataset.startswith(f"{name}-")]
    return max(fitting, key=len, default=None)


@cache
def _all() -> tuple[Reference, ...]:
    text = resources.files("smallvit.leaderboard").joinpath("published.csv").read_text("utf-8")
    return tuple(
        Reference(
            dataset=line.pop("dataset").removesuffix(CORRUPTED),
            params_m=float(size) if (size := line.pop("params_m")) else None,
            value=float(line.pop("value")),
            **line,
        )
        for line in csv.DictReader(text.splitlines())
    )
