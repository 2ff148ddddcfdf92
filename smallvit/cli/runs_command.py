"""``smallvit runs``."""

import json
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console

from smallvit.cli.options import Json
from smallvit.cli.tables import print_rows, print_text
from smallvit.core import places
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run, find_runs, what_is_at
from smallvit.runs.outcome import describe_outcome

runs_command = App(name="runs", help="List and show runs.", result_action="return_value")


@runs_command.command
def ls(*, as_json: Json = False) -> None:
    """List every run under the runs folder, oldest first.

    Args:
        as_json: Print the result of each run as JSON.
    """
    root = places.runs_dir()
    runs = list(find_runs(root))
    if not runs:
        raise DataError(f"no run under {root}: smallvit quickstart makes some")
    if as_json:
        found = [{"run": str(run.path), **run.result} for run in runs]
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    rows = []
    for run in runs:
        result = run.result
        keys = ("stage", "dataset", "model", "seed", "status")
        cells = [str(result.get(key, "?")) for key in keys]
        rows.append((_from_here(run.path), str(result["started"])[:16], *cells, _score(result)))
    headings = ("run", "started", "stage", "dataset", "model", "seed", "status", "score")
    print_rows(headings, rows)


@runs_command.command
def show(run: Path, /) -> None:
    """Show result, environment and files of one run, what there is to look at first.

    Args:
        run: Run folder.
    """
    if not (run / "result.json").is_file():
        raise ConfigError(f"{run} {what_is_at(run)}")
    opened = Run(run)
    result, env = opened.result, opened.env
    if opened.completed and "passes" in result:
        print_text(describe_outcome(opened))
    for path in sorted(run.rglob("*.png")):
        print_text(f"picture: {path}")
    Console().print_json(json.dumps({"result": result, "env": env}))
    for path in sorted(run.rglob("*")):
        if path.is_file():
            print_text(f"{path.stat().st_size:>12,}  {path}")


def _from_here(path: Path) -> str:
    """Return a path as it can be typed in the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _score(result: dict[str, Any]) -> str:
    metrics = result.get("metrics", {})
    names = {
        "val/top1": "val top-1",
        "val/knn": "val k-NN",
        "val/teacher_top1": "teacher val",
        "val/miou": "val mIoU",
    }
    return ", ".join(f"{names[k]} {v:.2%}" for k, v in metrics.items() if k in names)
