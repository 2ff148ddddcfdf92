"""From finished runs to a leaderboard: score each on its test split, compare, write and show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from smallvit.core import places
from smallvit.core.alone import alone
from smallvit.core.console import say
from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.core.run_folder import Run, find_runs
from smallvit.engine.config import RuntimeConfig
from smallvit.evaluate.yardstick import measure_yardstick
from smallvit.leaderboard.board import Evidence, Leaderboard, sum_evidence
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.leaderboard.published import published_references
from smallvit.leaderboard.report import prepare_folder, render_table, write_leaderboard
from smallvit.leaderboard.report_page import render_summary
from smallvit.leaderboard.rows import Entry, build_rows, name_labels, separate
from smallvit.leaderboard.scores import Scores, score_runs
from smallvit.leaderboard.settings import chosen_on, settings_of
from smallvit.leaderboard.verdict import compare_rows, describe_score

# Options of 'smallvit eval' for runs that have no place in a leaderboard.
SCORED_BY = {
    "teacher": "--split test",
    "segment": "--split test",
    "pretrain": "--knn --split test",
}
TABLE_WIDTH = 100  # columns that the table needs
# What an entry has of a run's result and of its environment, under the same names.
OF_RESULT = (
    *("dataset", "model", "init", "token_labels", "label_fraction", "num_labels", "seed"),
    *("params", "samples_seen", "wall_s", "images_per_s", "extra_data"),
)
OF_ENVIRONMENT = ("dirty", "machine", "device", "precision")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A leaderboard and where it was written.

    Attributes:
        leaderboard: Its figures.
        files: Path of each file by kind: ``json``, ``md``, ``csv`` and ``html``.
    """

    leaderboard: Leaderboard
    files: dict[str, Path]

    def __repr__(self) -> str:
        """Return one line a row, and where the page is."""
        rows = self.leaderboard.rows
        scores = [f"  {row.name}: {describe_score(row)}" for row in rows]
        return "\n".join([f"{self.leaderboard.title}: top-1", *scores, f"  {self.files['html']}"])

    def _repr_html_(self) -> str:
        """Return the accuracies as a table, as notebooks show it."""
        return render_summary(self.leaderboard, self.files["html"])

    def to_html(self, path: Path | str) -> Path:
        """Copy the page, which needs no other file, to ``path``.

        Raises:
            DataError: If it cannot be written.
        """
        target = Path(path).expanduser()
        with explained(lambda e: f"cannot write {target} ({e.strerror}): choose another path"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.files["html"].read_bytes())
        return target


def finetuned_runs() -> list[Run]:
    """Return every finished fine-tuned run under the runs folder.

    Raises:
        DataError: If there is none.
    """
    found = [
        run
        for run in find_runs(places.runs_dir())
        if run.completed and run.result["stage"] == "finetune"
    ]
    if not found:
        raise DataError(
            f"no finished fine-tuned run under {places.runs_dir()}: smallvit finetune makes one"
        )
    return found


@alone()
def bench_runs(
    runs: Sequence[Run],
    folder: Path | None = None,
    *,
    title: str = "Leaderboard",
    config: BenchConfig | None = None,
    place: Path | str | None = None,
    runtime_config: RuntimeConfig | None = None,
    notes: Sequence[str] = (),
) -> BenchResult:
    """Score fine-tuned runs on their test split, write the leaderboard and print it.

    Args:
        runs: Finished fine-tuned runs.
        folder: Where its files go; ``None`` is ``leaderboard`` in the runs folder.
        title: Heading of the leaderboard.
        config: What to measure beyond accuracy and calibration.
        place: Where the runs' data is; ``None`` is where it was.
        runtime_config: Device and precision of the scoring.
        notes: What else the leaderboard should say.

    Returns:
        The leaderboard and its files. A run that cannot be scored is named in them and left out.

    Raises:
        ConfigError: If a run is of another stage.
        DataError: If none could be scored, or the folder cannot be written.
        SmallViTError: If a part that was asked for could be measured of no run; what could be is
            written before.
    """
    config = config or BenchConfig()
    config.check()
    folder = folder or places.runs_dir() / "leaderboard"
    for run in runs:
        if (stage := run.result["stage"]) != "finetune":
            words = SCORED_BY.get(stage)
            remedy = f" ('smallvit eval {run.path} {words}' scores it)" if words else ""
            raise ConfigError(
                f"{run.path} is a {stage} run: a leaderboard is of fine-tuned ones{remedy}"
            )
    prepare_folder(folder)
    once = {run.path.resolve(): run for run in reversed(runs)}
    runs = list(reversed(once.values()))  # a folder that was named twice is one run
    scores, left_out, unmeasured = score_runs(
        runs, config, place=place, runtime_config=runtime_config
    )
    if not scores:
        raise DataError(f"none of {len(runs)} runs could be scored: see the lines above")
    leaderboard = build_leaderboard(scores, title=title, notes=[*left_out, *notes])
    files = write_leaderboard(leaderboard, folder)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(render_table(leaderboard))
    for line in [*leaderboard.verdict, *leaderboard.warnings]:
        console.print(line, markup=False, highlight=False)
    for path in files.values():
        say(str(path), console)
    if unmeasured is not None:
        raise unmeasured
    return BenchResult(leaderboard=leaderboard, files=files)


def build_leaderboard(
    scores: Sequence[Scores], *, title: str, notes: Sequence[str] = ()
) -> Leaderboard:
    """Average scored runs over seeds, compare the rows and add what was published."""
    entries = separate([_entry(each) for each in scores])
    rows = build_rows(entries)
    by_run = {str(each.run.path): each for each in scores}
    return Leaderboard(
        title=title,
        rows=rows,
        entries=entries,
        comparisons=compare_rows(rows, {path: each.correct for path, each in by_run.items()}),
        evidence={row.key: _evidence([by_run[each.run] for each in row.entries]) for row in rows},
        references=published_references(dict.fromkeys(entry.dataset for entry in entries)),
        protocol=_merge_protocols(scores, entries),
        notes=notes,
    )


def _evidence(scores: Sequence[Scores]) -> Evidence:
    """Add up what was counted of a row's runs; the picture is of the first."""
    return replace(
        sum_evidence([each.evidence for each in scores]), attention=scores[0].draw_attention()
    )


def _merge_protocols(scores: Sequence[Scores], entries: Sequence[Entry]) -> dict[str, str]:
    """Say once how a group of figures was measured, or of which rows where that differs."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for each, entry in zip(scores, entries, strict=True):
        part = f", {name_labels(entry.label_fraction)}" if entry.label_fraction < 1 else ""
        for name, text in each.protocol.items():
            by_name.setdefault(name, {}).setdefault(text, []).append(f"{entry.shown_dataset}{part}")
    return {
        name: next(iter(texts))
        if len(texts) == 1
        else " ".join(f"{'; '.join(dict.fromkeys(rows))}: {text}" for text, rows in texts.items())
        for name, texts in by_name.items()
    }


def _entry(scored: Scores) -> Entry:
    run, summary = scored.run, scored.summary
    result, env = run.result, run.env
    upstream = result["upstream"]
    return Entry(
        **{name: result[name] for name in OF_RESULT},
        **{name: env[name] for name in OF_ENVIRONMENT},
        top1=summary["top1"],
        top5=summary["top5"],
        correct=int(scored.correct.sum()),
        n_test=int(summary["n"]),
        pretrain_samples=int(upstream.get("pretrain", {}).get("samples_seen", 0)),
        teacher_samples=sum(
            int(upstream.get(stage, {}).get("samples_seen", 0)) for stage in ("teacher", "adopted")
        ),
        total_wall_s=result["wall_s"] + sum(cost["wall_s"] for cost in upstream.values()),
        commit=env["commit"] or "",
        run=str(run.path),
        fingerprint=env["dataset"]["fingerprint"],
        split_hash=env["split_hashes"]["test"],
        selected_on=chosen_on(run),
        yardstick=measure_yardstick(scored.evidence.confusion, scored.evidence.class_names),
        metrics=scored.figures,
        missing=scored.missing,
        settings=settings_of(run),
    )
