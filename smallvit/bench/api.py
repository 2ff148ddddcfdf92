"""The leaderboard as a Python function."""

from collections.abc import Iterable
from pathlib import Path

from smallvit.bench.runner import bench_runs
from smallvit.core import places
from smallvit.core.run_folder import Run, open_run


def bench(runs: Iterable[Run | Path | str], *, out: Path | str | None = None) -> dict[str, Path]:
    """Score fine-tuned runs on their test split and write a leaderboard.

    Args:
        runs: Finished fine-tuned runs.
        out: Folder of its files; by default ``leaderboard`` in the runs folder.

    Returns:
        Path of each file by kind: ``json``, ``md``, ``csv`` and ``html``.
    """
    opened = [run if isinstance(run, Run) else open_run(Path(run)) for run in runs]
    folder = places.runs_dir() / "leaderboard" if out is None else Path(out)
    return bench_runs(opened, folder, title="Leaderboard")
