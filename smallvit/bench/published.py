"""Published figures, for the reference rows of a leaderboard."""

from dataclasses import dataclass


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
