"""Making the runs of a suite: in order, each once, whatever becomes of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from smallvit.core import places
from smallvit.core.config import to_plain
from smallvit.core.errors import SmallViTError, explained
from smallvit.core.run_folder import Run, write_recipe
from smallvit.engine.signals import note_signals, stopped
from smallvit.leaderboard.launcher import AbstractLauncher
from smallvit.leaderboard.node import Job, Outcome, is_locked
from smallvit.leaderboard.suite import Plan
from smallvit.leaderboard.suite_progress import Board

MOST_NAMED = 5  # cells in the last line
POLL_S = 0.5  # between two looks at what other processes have made


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What a suite came to.

    Attributes:
        runs: Finished fine-tuned run of each cell that has one, in order.
        failures: Why each other cell has none, by its name.
        notes: What a reader of the leaderboard has to know: failed cells are among it.
    """

    runs: Sequence[Run]
    failures: dict[str, str]
    notes: Sequence[str]

    def raise_for_failures(self) -> None:
        """Say which cells failed.

        Raises:
            SmallViTError: If any did.
        """
        if self.failures:
            lines = [f"{name}: {why}" for name, why in self.failures.items()]
            more = len(lines) - MOST_NAMED
            raise SmallViTError(
                f"{len(lines)} of {len(lines) + len(self.runs)} cells have no result: "
                f"{'; '.join(lines[:MOST_NAMED])}{f'; and {more} more' if more > 0 else ''}"
            )


def run_suite(plan: Plan, launcher: AbstractLauncher, *, argv: Sequence[str] = ()) -> SuiteResult:
    """Make every run of a suite that is missing, and go on with those that were stopped.

    A run that fails is reported, and those that need it are left out; the others are made. Several
    processes can do so at once on one folder: no run is made by two, and what another one leaves
    unfinished is taken over.

    Args:
        plan: Runs of the suite.
        launcher: Where they are made.
        argv: Command line, for env.json.

    Raises:
        InterruptedRunError: After SIGTERM or SIGINT, once the runs in progress are saved.
        DataError: If the suite's folder cannot be written.
    """
    with explained(lambda e: f"cannot write {plan.folder} ({e.strerror}): choose another --out"):
        (plan.folder / "locks").mkdir(parents=True, exist_ok=True)
    write_recipe(plan.folder / "suite.yaml", to_plain(plan.suite.config))
    with note_signals() as received, Board(plan).shown() as board:
        try:
            while not board.finished and not received:
                _start_ready(plan, board, launcher, argv)
                if board.finished:
                    break
                for name, outcome in launcher.wait(POLL_S):
                    _settle(plan, board, name, outcome)
        finally:
            for name, outcome in launcher.stop():
                _settle(plan, board, name, outcome, stopping=True)
        made = [name for name in plan.cells if board.states[name] == "done"]
        if received:
            raise stopped(
                received,
                f"with {len(made)} of {len(plan.cells)} cells done, state saved: the same command "
                "goes on",
            )
    failures = {name: board.why[name] for name in plan.cells if name not in made}
    return SuiteResult(
        runs=[plan.run(name) for name in made],
        failures=failures,
        notes=[*plan.notes(), *(f"no result of {name}: {why}" for name, why in failures.items())],
    )


def whole_suite_lock(plan: Plan) -> FileLock:
    """Return the lock under which a suite's leaderboard is written."""
    return FileLock(_lock(plan, "leaderboard"))


def _start_ready(plan: Plan, board: Board, launcher: AbstractLauncher, argv: Sequence[str]) -> None:
    """Start what can be made, as far as there is room."""
    for name, node in plan.nodes.items():
        if board.states[name] not in ("waiting", "elsewhere"):
            continue
        failed = [need for need in node.needs if board.states[need] in ("failed", "skipped")]
        if failed:
            direct = board.states[failed[0]] == "failed"
            why = f"it needs {failed[0]}, which failed" if direct else board.why[failed[0]]
            board.set(name, "skipped", why)
        elif plan.done(name):
            board.set(name, "done", "made by another process")
        elif all(board.states[need] == "done" for need in node.needs) and launcher.has_room:
            if is_locked(_lock(plan, name)):
                board.set(name, "elsewhere")
                continue
            launcher.start(
                Job(
                    name=name,
                    stage=node.stage,
                    recipe=to_plain(node.recipe),
                    folder=str(plan.folder / name),
                    lock=str(_lock(plan, name)),
                    log=str(plan.folder / "logs" / f"{name.replace('/', '-')}.log"),
                    argv=argv,
                    environ=_environ(),
                )
            )
            board.set(name, launcher.started)


def _settle(
    plan: Plan, board: Board, name: str, outcome: Outcome, *, stopping: bool = False
) -> None:
    if outcome.exit_code == 0:
        board.set(name, "done", _describe(plan.run(name)))
    elif outcome.busy:
        board.set(name, "elsewhere")
    elif outcome.stopped and stopping:
        board.set(name, "stopped")
    else:
        board.set(name, "failed", outcome.error or f"exit code {outcome.exit_code}")


def _describe(run: Run) -> str:
    """Say in a few words what a finished run came to."""
    result = run.result
    scores = (
        f"{name} {value:.2%}"
        for name, value in result["metrics"].items()
        if name in ("val/top1", "val/knn")
    )
    return ", ".join([*scores, f"{result['wall_s']:.1f} s"])


def _lock(plan: Plan, name: str) -> Path:
    return plan.folder / "locks" / f"{name.replace('/', '-')}.lock"


def _environ() -> dict[str, str]:
    """Return what a machine of a cluster would not know: where things lie."""
    return {
        "SMALLVIT_CACHE_DIR": str(places.absolute(places.cache_dir())),
        "SMALLVIT_DATA_DIR": str(places.absolute(places.data_dir())),
        "SMALLVIT_RUNS_DIR": str(places.runs_dir()),
        "SMALLVIT_OFFLINE": "1" if places.offline() else "",
    }
