"""What the features of a network are worth, by k-NN and a linear probe on the labelled images."""

from collections.abc import Sequence

from smallvit.engine.runtime import Runtime
from smallvit.evaluate.config import NUM_NEIGHBORS, TEMPERATURE
from smallvit.evaluate.knn import extract_features, knn_top1
from smallvit.evaluate.linear_probe import linear_top1
from smallvit.leaderboard.part import FigureKind, Measured, OpenedRun, Part
from smallvit.leaderboard.protocol import BenchConfig


def measure_probes(
    group: Sequence[OpenedRun], task: str, config: BenchConfig, runtime: Runtime
) -> Sequence[Sequence[Measured]]:
    """Score features that the classifier reads."""
    (opened,) = group
    kept = opened.kept("probes", runtime, {"k": NUM_NEIGHBORS, "temp": TEMPERATURE})
    return [[kept.read_or(lambda: _measure(opened, runtime))]]


def _measure(opened: OpenedRun, runtime: Runtime) -> Measured:
    labelled, test = (
        extract_features(
            opened.backbone,
            opened.batches(split, f"features of {split}"),
            autocast=runtime.autocast,
        )
        for split in ("labelled", "test")
    )
    return {
        "figures": {
            "features/knn": knn_top1(*labelled, *test, num_classes=opened.dataset.num_classes),
            "features/linear": linear_top1(*labelled, *test),
        },
        "protocol": {
            "Backbone": f"Features that the classifier reads. k-NN: {NUM_NEIGHBORS} neighbours, "
            f"temperature {TEMPERATURE}, bank of the {len(labelled[1]):,} labelled images; linear "
            "probe: logistic regression on the same."
        },
    }


PROBES = Part(
    measure=measure_probes,
    tasks=lambda config: ("probes",) if config.probes else (),
    figures={
        "features/knn": FigureKind("Backbone", "k-NN", better="higher"),
        "features/linear": FigureKind("Backbone", "linear probe", better="higher"),
    },
)
