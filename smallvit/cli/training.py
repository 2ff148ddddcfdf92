"""What the commands of the stages have in common."""

from smallvit.cli.options import Given
from smallvit.core.console import say
from smallvit.core.run_folder import Run
from smallvit.runs.config import Call, Recipe, Stage
from smallvit.runs.outcome import describe_outcome


def asked(stage: Stage, given: Given) -> tuple[Recipe, Stage, Call]:
    """Return what ``run_stage`` takes: the recipe that options ask for, and how it is called."""
    from smallvit.runs.request import Request, resolve  # late: help is to be quick

    request = Request(stage=stage, options=given.options, argv=given.argv)
    return resolve(request), stage, request.call


def say_end(run: Run | None, following: str) -> None:
    """Say how a training stage ended, where its run is and what to do next.

    Args:
        run: The run; ``None`` after a dry run, which has said so.
        following: Command that comes next, with ``{run}`` for the run.
    """
    if run is None:
        return
    if not run.env["dataset"]["class_names"]:
        following = "smallvit finetune --init {run} --data IMAGES-WITH-LABELS"
    say(f"{describe_outcome(run)}\nrun: {run.path}\nnext: {following.format(run=run.path)}")
