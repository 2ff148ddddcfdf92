"""The leaderboard as a Python function."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smallvit.bench.protocol import BenchConfig
from smallvit.bench.runner import BenchResult, bench_runs
from smallvit.core import places
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, open_run


def bench(
    runs: Iterable[Run | Path | str],
    *,
    out: Path | str | None = None,
    data: Path | str | None = None,
    **settings: Any,
) -> BenchResult:
    """Score fine-tuned runs on their test split and write a leaderboard.

    ``bench([run], corruptions="generated").to_html("report.html")``

    Args:
        runs: Finished fine-tuned runs.
        out: Folder of its files; by default ``leaderboard`` in the runs folder.
        data: Where the runs' images are, if not where they were.
        **settings: What to measure, by the names of ``BenchConfig``.
    """
    opened = [open_run(run.path if isinstance(run, Run) else Path(run)) for run in runs]
    if not opened:
        raise ConfigError("bench needs runs: name at least one")
    folder = places.runs_dir() / "leaderboard" if out is None else Path(out)
    config = resolve(BenchConfig, [Layer(source="arguments", values=settings)])
    return bench_runs(opened, folder, title="Leaderboard", config=config, place=data)
