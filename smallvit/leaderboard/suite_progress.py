"""How far a suite is: a line for each run that starts or ends, and what its plan comes to."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from smallvit.core.console import console, say
from smallvit.leaderboard.suite import Node, Plan, passes_of, samples_of
from smallvit.runs.config import STAGES

# "elsewhere" is made by another process; "skipped" needs a run that failed.
State = Literal["waiting", "queued", "running", "elsewhere", "stopped", "done", "failed", "skipped"]


class Board:
    """State of every run of a suite, shown while it changes.

    On a terminal the runs in progress stand below the lines, with their time.

    Args:
        plan: The runs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.states: dict[str, State] = {
            name: "done" if plan.done(name) else "waiting" for name in plan.nodes
        }
        self.states |= dict.fromkeys(plan.faults, "failed")
        self.why = dict(plan.faults)
        self.since: dict[str, float] = {}
        self.live = Live(
            get_renderable=self._in_progress, console=console, transient=True, refresh_per_second=2
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return not {"waiting", "queued", "running", "elsewhere"} & set(self.states.values())

    def set(self, name: str, state: State, what: str = "") -> None:
        """Note and show the state of a run.

        Args:
            name: Its name.
            state: Its new state.
            what: What it came to, or why it failed.
        """
        if self.states[name] == state:
            return
        self.states[name] = state
        self.since[name] = time.monotonic()
        if state in ("failed", "skipped"):
            self.why[name] = what
        elif state != "done":
            what = {"elsewhere": "another process makes it"}.get(state, what)
        ended = sum(each in ("done", "failed", "skipped") for each in self.states.values())
        say(f"[{ended}/{len(self.states)}] {name}: {state}{': ' if what else ''}{what}")

    @contextmanager
    def shown(self) -> Iterator["Board"]:
        """Say what there is to do, and show the runs in progress meanwhile."""
        counts = Counter(self.states.values())
        say(
            f"{len(self.plan.cells)} cells in {len(self.states)} runs: {counts['done']} there, "
            f"{counts['waiting']} to make -> {self.plan.folder}"
        )
        for name, why in self.plan.faults.items():
            say(f"{name}: failed: {why}")
        with self.live if console.is_terminal else nullcontext():
            yield self

    def _in_progress(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, state in self.states.items():
            if state in ("queued", "running", "elsewhere"):
                table.add_row(name, state, f"{time.monotonic() - self.since[name]:.0f} s")
        return table


def print_plan(plan: Plan) -> None:
    """Print every cell with its state, and what is there and missing of each stage."""
    out = Console()
    if not out.is_terminal:
        out.width = max(out.width, 100)
    cells = Table("cell", "state", "needs", title=f"{plan.suite.name} -> {plan.folder}")
    for name in plan.cells:
        state = plan.faults.get(name) or ("done" if plan.done(name) else "missing")
        needs = plan.nodes[name].needs if name in plan.nodes else ()
        missing = [need for need in _all_needs(plan, needs) if not plan.done(need)]
        cells.add_row(name, state, ", ".join(missing) or "-")
    out.print(cells)
    totals = Table("stage", "there", "missing", "passes missing", "samples missing")
    for stage in STAGES:
        nodes = [node for node in plan.nodes.values() if node.stage == stage]
        missing = [node for node in nodes if not plan.done(node.name)]
        passes = sum(passes_of(node) for node in missing)
        there = len(nodes) - len(missing)
        totals.add_row(stage, str(there), str(len(missing)), f"{passes:,.4g}", _samples(missing))
    out.print(totals)
    for note in plan.notes():
        say(note, out)


def _all_needs(plan: Plan, needs: Iterable[str]) -> Iterable[str]:
    for need in needs:
        yield from _all_needs(plan, plan.nodes[need].needs)
        yield need


def _samples(nodes: Iterable[Node]) -> str:
    counts = [samples_of(node) for node in nodes]
    known = sum(count for count in counts if count is not None)
    unknown = sum(count is None for count in counts)
    return f"about {known:,.0f}" + (f" and those of {unknown} runs" if unknown else "")
