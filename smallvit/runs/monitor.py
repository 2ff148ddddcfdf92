"""Watching stage 1: how good its features are, and whether they collapsed.

Shapes in this file:
    N    images
    D    embed dim
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.core.errors import CollapsedError
from smallvit.data.dataset import Dataset, Split, even_positions, take_evenly
from smallvit.data.views import eval_batches
from smallvit.engine.log import read_metrics
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.knn import extract_features, knn_top1
from smallvit.evaluate.linear_probe import linear_top1
from smallvit.evaluate.spread import effective_rank, feature_std
from smallvit.models.tokens import AbstractBackbone, Features
from smallvit.parallel import processes
from smallvit.runs.config import MonitorConfig

logger = logging.getLogger("smallvit")
EVAL_BATCH = 512
SPREAD_IMAGES = 2048  # of the singular value decomposition
# On 10,000 features of 192 dimensions, one thread: 0.3 s for 10 classes, 1.4 s for 100 and 3 s for
# 200, within a point of where `smallvit eval --linear` ends.
PROBE_ITERATIONS = 100

# Each kind of collapse has a distance that falls to 0 (see collapse_distances). The bounds lie
# between runs that learned and runs that did not, of 250 steps of dino on digits and photographs:
# - uniform: a run at loss = log K had targets within 0.004 of it from its fourth evaluation of ten
#   and within 0.0002 at the end; the paper's settings on 1,200 photographs, slow as they are
#   there, came no nearer than 0.02.
# - point: the mean target of all images, since each by itself may be as sharp as it likes; with a
#   centre that stood still it went from 7e-3 of log K to 1e-5 in one pass.
# - constant and line: fresh ViTs on digits have a standard deviation of 0.09 and rank 2.2, which
#   good runs keep for long; a learning rate 60 times too high came down to 0.02 and 1.5 and left.
BOUNDS = {"uniform": 0.005, "point": 0.01, "constant": 0.01, "line": 0.2}
# A fresh CaiT has a standard deviation of 7e-6 and rank 1.001, since its class attention is scaled
# by 1e-5. So what starts from fresh weights must fall to this part of its start, too.
OF_START = 0.5
FEWEST_IMAGES = 16  # whose features say something of a spread
# Every run starts near one of them or another. One that leaves is let go: its distance grows by
# this factor between evaluations, by more than a rounding error.
LEAVING = 1.5
ROUNDING = 0.01  # of the bound
SLOWER = "lower optim.lr or raise schedule.warmup_epochs"
REMEDIES = {
    **dict.fromkeys(
        ("dino", "ibot"), f"lower method.center_momentum, raise method.teacher_temp, {SLOWER}"
    ),
    **dict.fromkeys(("mocov3", "simclr"), f"{SLOWER}, or raise optim.batch_size"),
    "lejepa": f"raise method.sigreg_weight, {SLOWER}",
    **dict.fromkeys(("mae", "simmim"), f"{SLOWER}, or raise method.mask_ratio"),
}


@dataclass
class Monitor:
    """The evaluation of stage 1: features are extracted once for all that is measured.

    Attributes:
        backbone: The network to watch.
        dataset: On the device; without labels there is no probe.
        runtime: Precision.
        config: Settings.
        features: What of an image is measured.
    """

    backbone: AbstractBackbone
    dataset: Dataset
    runtime: Runtime
    config: MonitorConfig
    features: Features = "pooled"

    def __post_init__(self) -> None:
        self.bank = take_evenly(self.dataset.splits["labelled"], self.config.bank_size)
        self.watched = self.dataset.splits["val" if self.dataset.labelled else "train"]
        if not self.dataset.labelled:
            self.watched = take_evenly(self.watched, SPREAD_IMAGES)

    def __call__(self) -> dict[str, float]:
        """Measure the network as it is."""
        features, labels = self.extract(self.watched)
        rows = even_positions(self.watched, SPREAD_IMAGES).to(features.device)
        spread = measure_spread(features[rows])
        if not self.dataset.labelled:
            return spread
        bank = self.extract(self.bank)
        if not processes.is_first():
            return spread  # the first one's scores count
        scores = {"val/knn": self._knn(bank, (features, labels))}
        if self.config.linear_probe:
            scores["val/linear"] = linear_top1(
                *bank, features, labels, max_iterations=PROBE_ITERATIONS
            )
        return scores | spread

    def measure_start(self) -> dict[str, float]:
        """Measure the spread of the features alone."""
        return measure_spread(self.extract(take_evenly(self.watched, SPREAD_IMAGES))[0])

    def score_knn(self, split: Split) -> float:
        """Return the k-NN accuracy on one split alone."""
        self._warn_of_small_bank()
        return self._knn(self.extract(self.bank), self.extract(split))

    def announce(self) -> None:
        """Say once what the numbers are measured on."""
        if not self.dataset.labelled:
            logger.info("evaluations: spread of the features of %d images", len(self.watched))
            return
        logger.info(
            "evaluations: %d validation images, by their %d nearest neighbors of %d labelled "
            "training images%s",
            len(self.watched),
            min(self.config.knn_neighbours, len(self.bank)),
            len(self.bank),
            " and by a linear probe on these" if self.config.linear_probe else "",
        )
        self._warn_of_small_bank()

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers are measured on, for result.json."""
        spread: dict[str, Any] = {"spread_images": min(len(self.watched), SPREAD_IMAGES)}
        if self.features != "pooled":
            spread["features"] = self.features
        if not self.dataset.labelled:
            return spread
        return {
            "knn_neighbours": min(self.config.knn_neighbours, len(self.bank)),
            "knn_temp": self.config.knn_temp,
            "bank_images": len(self.bank),
            "val_images": len(self.watched),
            "linear_probe": self.config.linear_probe,
            **spread,
        }

    def extract(self, split: Split) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
        """Return the features and labels of a split's images, as they are."""
        batches, autocast = eval_batches(self.dataset, split, EVAL_BATCH), self.runtime.autocast
        return extract_features(self.backbone, batches, autocast=autocast, kind=self.features)

    def _knn(self, bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]) -> float:
        return knn_top1(
            *bank,
            *queries,
            num_classes=self.dataset.num_classes,
            num_neighbors=self.config.knn_neighbours,
            temp=self.config.knn_temp,
        )

    def _warn_of_small_bank(self) -> None:
        if len(self.bank) < self.config.knn_neighbours:
            logger.warning(
                "k-NN: %d neighbours are asked for, and the bank has %d images: all of them vote",
                self.config.knn_neighbours,
                len(self.bank),
            )


def measure_spread(features: Float[Tensor, "N D"]) -> dict[str, float]:
    """Return standard deviation and effective rank, by the names of their metrics."""
    std, rank = torch.stack([feature_std(features), effective_rank(features)]).tolist()
    return {"features/std": std, "features/rank": rank}


def collapse_distances(
    metrics: Mapping[str, float | None], max_entropy: float | None
) -> dict[str, float]:
    """Return how far a network is from each kind of collapse, by kind; 0 is collapsed.

    Args:
        metrics: Of one evaluation; values that were not finite are ``None``.
        max_entropy: Entropy of uniform targets, in nats; ``None`` where there are no targets.
    """
    distances: dict[str, float] = {}
    entropy, std = metrics.get("train/teacher_entropy"), metrics.get("features/std")
    used, rank = metrics.get("train/prototype_entropy"), metrics.get("features/rank")
    if entropy is not None and max_entropy is not None:
        # Rounding may put the entropy of uniform targets above log K.
        distances["uniform"] = max(0.0, 1 - entropy / max_entropy)
    if used is not None and max_entropy is not None:
        distances["point"] = used / max_entropy
    if std is not None:
        distances["constant"] = std
    if rank is not None:
        distances["line"] = rank - 1
    return distances


def collapse_bounds(start: Mapping[str, float], num_images: int) -> dict[str, float]:
    """Return how near to each kind of collapse a run must come to be at it.

    Args:
        start: Spread of the features of fresh weights, by metric; empty for weights that were
            trained, which have no such excuse.
        num_images: Images whose features are measured; of few, only the targets are judged.
    """
    at_start = collapse_distances(start, None)
    bounds = {
        kind: min(bound, OF_START * at_start.get(kind, math.inf)) for kind, bound in BOUNDS.items()
    }
    if num_images < FEWEST_IMAGES:
        bounds |= {"constant": 0.0, "line": 0.0}
    return bounds


@dataclass(kw_only=True)
class CollapseWatch:
    """Stops a run whose features or targets collapsed; a ``watch`` of ``engine.fit``.

    One evaluation proves nothing, since every run starts close to a collapse. The verdict needs two
    in a row, the first of them after the warm-up of the learning rate (or the second at the end of
    the run), and no sign that the run is leaving. The earlier of the two is read from
    metrics.jsonl, so that a resumed run judges as an unbroken one.

    Attributes:
        config: Whether to stop.
        method: Name of the method, which the advice is for.
        max_entropy: Entropy of its uniform targets, in nats; ``None`` where it has none.
        metrics_path: metrics.jsonl of the run.
        warmup_steps: Steps in which nothing is judged.
        total_steps: Steps of the whole run.
        bounds: Distance of each kind of collapse below which a run is at it.
    """

    config: MonitorConfig
    method: str
    max_entropy: float | None
    metrics_path: Path
    warmup_steps: float
    total_steps: int
    bounds: Mapping[str, float] = field(default_factory=lambda: BOUNDS)

    def __post_init__(self) -> None:
        self._said = False

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Judge one evaluation.

        Args:
            step: Steps done.
            metrics: All metrics of it.

        Raises:
            CollapsedError: If the run collapsed and is to be stopped.
        """
        collapsed = self._find(step, metrics)
        if collapsed is None or self._said:
            return
        error = CollapsedError(
            step,
            _describe(collapsed, metrics, self.max_entropy),
            get_remedy(self.method, collapsed),
        )
        if self.config.on_collapse == "stop":
            raise error
        logger.warning("%s", error)
        self._said = True

    def _find(self, step: int, metrics: dict[str, float]) -> str | None:
        """Return the kind of collapse, or ``None``."""
        distances = collapse_distances(metrics, self.max_entropy)
        bounds = self.bounds
        near = [kind for kind, bound in bounds.items() if distances.get(kind, bound) < bound]
        if not near:
            return None
        rows = read_metrics(self.metrics_path)
        earlier = [row for row in rows if row["step"] < step and "features/std" in row]
        if not earlier:
            if step == self.total_steps:
                logger.warning(
                    "%s, but one evaluation does not tell a collapse from a start: for more of "
                    "them lower schedule.eval_epochs",
                    _describe(near[0], metrics, self.max_entropy),
                )
            return None
        if earlier[-1]["step"] < self.warmup_steps and step < self.total_steps:
            return None
        before = collapse_distances(earlier[-1], self.max_entropy)
        for kind in near:
            was = before.get(kind, bounds[kind])
            leaving = distances[kind] > LEAVING * max(was, ROUNDING * bounds[kind])
            if was < bounds[kind] and not leaving:
                return kind
        return None


def _describe(kind: str, metrics: Mapping[str, float], max_entropy: float | None) -> str:
    if kind in ("uniform", "point"):
        what, name = {
            "uniform": ("the targets are uniform", "train/teacher_entropy"),
            "point": ("all targets are one prototype", "train/prototype_entropy"),
        }[kind]
        return f"{what} ({name} {metrics[name]:.4g} of {max_entropy:.4g} nats)"
    if kind == "constant":
        std = metrics["features/std"]
        return f"the features of all images are the same (features/std {std:.4g} of 1)"
    return f"the features fill one dimension (features/rank {metrics['features/rank']:.4g})"


def get_remedy(method: str, kind: str) -> str:
    """Return what to change in a method against a kind of collapse."""
    if kind == "uniform":
        return (
            "lower method.teacher_temp and method.momentum, set method.head_batch_norm true or "
            "raise optim.lr"
        )
    return REMEDIES.get(method, SLOWER)
