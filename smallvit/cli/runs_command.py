"""``smallvit runs``."""

import json
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console
from rich.table import Table

from smallvit.core import places
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run, find_runs, what_is_at

runs_command = App(name="runs", help="List and show runs.", result_action="return_value")


@runs_command.command
def ls() -> None:
    """List every run under the runs folder, oldest first."""
    table = Table("started", "stage", "dataset", "model", "seed", "status", "score", "run")
    for run in find_runs(places.runs_dir()):
        result = run.result
        keys = ("stage", "dataset", "model", "seed", "status")
        cells = [str(result.get(key, "?")) for key in keys]
        table.add_row(result["started"][:16], *cells, _score(result), str(run.path))
    if not table.row_count:
        raise DataError(f"no run under {places.runs_dir()}: smallvit quickstart makes some")
    Console().print(table)


@runs_command.command
def show(run: Path, /) -> None:
    """Show result, environment and files of one run.

    Args:
        run: Run folder.
    """
    if not (run / "result.json").is_file():
        raise ConfigError(f"{run} {what_is_at(run)}")
    console, opened = Console(), Run(run)
    console.print_json(json.dumps({"result": opened.result, "env": opened.env}))
    for path in sorted(run.rglob("*")):
        if path.is_file():
            console.print(f"{path.stat().st_size:>12,}  {path}", highlight=False, soft_wrap=True)


def _score(result: dict[str, Any]) -> str:
    metrics = result.get("metrics", {})
    names = {
        "val/top1": "val top-1",
        "val/knn": "val k-NN",
        "val/teacher_top1": "teacher val",
        "val/miou": "val mIoU",
    }
    return ", ".join(f"{names[k]} {v:.2%}" for k, v in metrics.items() if k in names)
