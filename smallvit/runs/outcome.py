"""How a run ended, in one line."""

from typing import Any

from smallvit.core.run_folder import Run


def describe_outcome(run: Run) -> str:
    """Return stage, scores, passes and time of a finished run."""
    result = run.result
    scores = ", ".join(
        f"{name} {value:.2%}"
        for name, value in result["metrics"].items()
        if name in ("val/top1", "val/knn", "val/linear")
    )
    scores = f"{scores} ({result['selected_on']})" if scores else result["selected_on"]
    return (
        f"{result['stage']}: {scores}{_beside(result.get('yardstick'))}, "
        f"{result['passes']:.1f} passes, {result['wall_s']:.1f} s"
    )


def _beside(yardstick: dict[str, Any] | None) -> str:
    """Say what an accuracy is held against, if the run has said so."""
    if yardstick is None:
        return ""
    said = f"; naming {yardstick['commonest']!r} always {yardstick['commonest_share']:.2%}"
    if yardstick["uneven"]:
        said += f", mean per class {yardstick['mean_per_class']:.2%}"
    return f"{said}; no accuracy to go by" if yardstick["fault"] else said
