"""How a run ended, in one line."""

from typing import Any

from smallvit.core.run_folder import Run

SHOWN = ("val/top1", "val/knn", "val/linear", "val/miou", "val/pixel_accuracy")


def describe_outcome(run: Run) -> str:
    """Return stage, scores, passes and time of a finished run."""
    result = run.result
    scores = ", ".join(
        f"{name} {value:.2%}" for name, value in result["metrics"].items() if name in SHOWN
    )
    scores = f"{scores} ({result['selected_on']})" if scores else result["selected_on"]
    return (
        f"{result['stage']}: {scores}{_beside(result)}, "
        f"{result['passes']:.1f} passes, {result['wall_s']:.1f} s"
    )


def _beside(result: dict[str, Any]) -> str:
    """Say what an accuracy is held against, if the run has said so."""
    if baseline := result.get("baseline"):
        scores = " and ".join(f"{value:.2%}" for value in baseline.values())
        return f"; the most frequent class alone {scores}"
    yardstick = result.get("yardstick")
    if yardstick is None:
        return ""
    beside = f"; naming {yardstick['commonest']!r} always {yardstick['commonest_share']:.2%}"
    if yardstick["uneven"]:
        beside += f", mean per class {yardstick['mean_per_class']:.2%}"
    return f"{beside}; no accuracy to go by" if yardstick["fault"] else beside
