"""From finished runs to a leaderboard: score each on its test split, write and show."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from smallvit.bench.leaderboard import ARMS, Entry, build_rows, verdict, warnings_of
from smallvit.bench.report import render_table, write_leaderboard
from smallvit.core.errors import DataError, SmallViTError
from smallvit.core.run_folder import Run
from smallvit.engine.runtime import RuntimeConfig
from smallvit.run.score import score_run

TABLE_WIDTH = 100  # columns that the table needs
logger = logging.getLogger("smallvit")


def bench_runs(
    runs: Sequence[Run],
    folder: Path,
    *,
    title: str,
    runtime_config: RuntimeConfig | None = None,
) -> dict[str, Path]:
    """Score fine-tuned runs on their test split, write the leaderboard and print it.

    Args:
        runs: Finished fine-tuned runs.
        folder: Where its files go.
        title: Heading of the leaderboard.
        runtime_config: Device and precision of the scoring.

    Returns:
        Path of each file by kind: ``json``, ``md``, ``csv`` and ``html``. A run that cannot be
        scored is named in them and left out.

    Raises:
        DataError: If none could be scored.
    """
    entries, notes = [], []
    for run in runs:
        logger.info("scoring %s on test", run.path)
        try:
            entries.append(_score(run, runtime_config))
        except SmallViTError as error:
            logger.warning("left out: %s", error)
            notes.append(f"left out: {error}")
    if not entries:
        raise DataError(f"none of {len(runs)} runs could be scored: see the lines above")
    rows = build_rows(entries)
    files = write_leaderboard(rows, entries, folder, title=title, notes=notes)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(render_table(rows))
    for line in [*verdict(rows), *warnings_of(entries)]:
        console.print(line, markup=False, highlight=False)
    for path in files.values():
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return files


def _score(run: Run, runtime_config: RuntimeConfig | None) -> Entry:
    result, env = run.result, run.env
    scores = score_run(run.path, split="test", runtime_config=runtime_config)
    upstream = result["upstream"]
    init: str = result["init"]
    token_labels: bool = result["token_labels"]
    return Entry(
        dataset=result["dataset"],
        model=result["model"],
        arm=ARMS.get((init, token_labels), f"{init} start" + " + token labels" * token_labels),
        init=init,
        token_labels=token_labels,
        label_fraction=result["label_fraction"],
        num_labels=result["num_labels"],
        seed=result["seed"],
        top1=scores["top1"],
        top5=scores["top5"],
        correct=round(scores["top1"] * scores["n"]),
        n_test=int(scores["n"]),
        params=result["params"],
        samples_seen=result["samples_seen"],
        pretrain_samples=int(upstream.get("pretrain", {}).get("samples_seen", 0)),
        teacher_samples=int(upstream.get("teacher", {}).get("samples_seen", 0)),
        wall_s=result["wall_s"],
        total_wall_s=result["wall_s"] + sum(cost["wall_s"] for cost in upstream.values()),
        images_per_s=result["images_per_s"],
        extra_data=result["extra_data"],
        commit=env["commit"] or "",
        dirty=env["dirty"],
        machine=env["machine"],
        device=env["device"],
        precision=env["precision"],
        run=str(run.path),
        fingerprint=env["dataset"]["fingerprint"],
        split_hash=env["split_hashes"]["test"],
    )
