"""The leaderboard as a Python function."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.alone import alone
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import ConfigError
from smallvit.core.python_call import python_call
from smallvit.core.run_folder import Run, open_run
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.leaderboard.runner import BenchResult, bench_runs, finetuned_runs

OneRun = Run | Path | str


@alone
def bench(
    runs: OneRun | Iterable[OneRun] | None = None,
    *,
    out: Path | str | None = None,
    data: Path | str | None = None,
    offline: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> BenchResult:
    """Score fine-tuned runs on their test split and write a leaderboard.

    ``bench(run, corruptions="generated").to_html("report.html")``

    Args:
        runs: Finished fine-tuned runs or their folders, one or several; by default every one under
            the runs folder.
        out: Folder of its files; by default ``leaderboard`` in the runs folder.
        data: Where the runs' images are, if not where they were.
        offline: Download nothing.
        verbose: Show progress, in a notebook in one line.
        **settings: What to measure, by the names of ``BenchConfig``.

    Raises:
        ConfigError: If one is not there, there is no run among them, or a setting is unknown or
            out of range.
        DataError: If a run did not finish, or none can be scored.
    """
    with python_call(verbose=verbose, offline=offline):
        config = resolve(BenchConfig, [Layer(source="arguments", values=settings)])
        opened = finetuned_runs() if runs is None else [open_run(path) for path in _paths(runs)]
        if not opened:
            raise ConfigError("bench needs runs: name at least one")
        folder = places.runs_dir() / "leaderboard" if out is None else Path(out)
        return bench_runs(opened, folder, title="Leaderboard", config=config, place=data)


def _paths(runs: Any) -> list[Path]:
    if isinstance(runs, Run | str | PathLike) or not isinstance(runs, Iterable):
        return [_path(runs)]
    return [_path(run) for run in runs]


def _path(run: Any) -> Path:
    if isinstance(run, Run):
        return run.path
    if not isinstance(run, str | PathLike):
        raise ConfigError(
            f"bench takes runs or their folders, not {type(run).__name__} ({run!r}): give what "
            'sv.finetune returned, or a path such as "runs/digits/..."'
        )
    return Path(run).expanduser()
