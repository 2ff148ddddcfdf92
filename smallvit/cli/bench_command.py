"""``smallvit bench``."""

from pathlib import Path
from typing import Literal

from smallvit.bench.runner import bench_runs
from smallvit.core import places
from smallvit.core.errors import DataError
from smallvit.core.run_folder import find_runs, open_run
from smallvit.engine.runtime import RuntimeConfig


def bench_command(
    *runs: Path,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score fine-tuned runs on their test split and put them in a leaderboard.

    Args:
        runs: Run folders; without any, every finished fine-tuned run under the runs folder.
        out: Folder of the leaderboard's files; by default ``leaderboard`` in the runs folder.
        device: Device to compute on.
    """
    chosen = [open_run(path, stage="finetune") for path in runs] or [
        run
        for run in find_runs(places.runs_dir())
        if run.completed and run.result["stage"] == "finetune"
    ]
    if not chosen:
        raise DataError(
            f"no finished fine-tuned run under {places.runs_dir()}: smallvit finetune makes one"
        )
    folder = out or places.runs_dir() / "leaderboard"
    bench_runs(chosen, folder, title="Leaderboard", runtime_config=RuntimeConfig(device=device))
