"""What tells the rows of a leaderboard apart, as the runs themselves say it."""

from pathlib import Path
from typing import Any

from smallvit.core.config import flatten
from smallvit.core.run_folder import Run
from smallvit.runs.init_weights import pretrain_method
from smallvit.runs.recipe import run_values

# Settings that the cells of a suite and the rows of a leaderboard differ in, and the key of a suite
# that says them.
VARIED = {
    "seed": "seeds",
    "data.dataset": "datasets",
    "data.path": "datasets",
    "data.label_fraction": "fractions",
    "model.name": "models",
    "pretrain.method.name": "inits",
    "finetune.init": "inits",
    "finetune.token_label.enabled": "token_label",
    "finetune.score_maps": "token_label",
    "finetune.teacher": "token_label",
    "label.teacher": "token_label",
    "arms": "inits and token_label",
}


def settings_of(run: Run) -> dict[str, Any]:
    """Return what a run's recipe says, by path, and how much what it builds on has seen.

    Left out is what rows are told apart by, what a seed changes, and what moves no result.
    """
    plain = run_values(run, "finetune")
    flat = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flatten({key: plain[key] for key in ("data", "model", "finetune")})
        if name not in {*VARIED, "data.allow_leak"}
    }
    if not plain["finetune"]["token_label"]["enabled"]:
        flat = {k: v for k, v in flat.items() if not k.startswith("finetune.token_label.")}
    method = run.result.get("start_method")
    init = plain["finetune"]["init"]
    if (
        method is None
        and run.result["init"] == "pretrain"
        and (Path(init) / "recipe.yaml").is_file()
    ):
        method = pretrain_method(Run(Path(init)))  # of a run that was made before it was noted
    if method is not None:
        flat["pretrain.method"] = method
    for stage, cost in run.result["upstream"].items():
        flat[f"{stage}.{stage} samples"] = cost["samples_seen"]
    return flat


def chosen_on(run: Run) -> str:
    """Return the split and metric that a run's weights were chosen by, without the step."""
    return str(run.result.get("selected_on", "")).partition(" at step")[0]
