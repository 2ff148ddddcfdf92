"""What the commands of the stages have in common."""

from smallvit.cli.options import Given
from smallvit.core.console import say
from smallvit.core.run_folder import Run
from smallvit.runs.config import Stage
from smallvit.runs.outcome import describe_outcome


def make(stage: Stage, given: Given) -> Run | None:
    """Make the run of a stage with the options given; ``None`` after a dry run."""
    from smallvit.runs.request import Request, answer  # late: help is to be quick

    return answer(Request(stage=stage, options=given.options, argv=given.argv))


def train(stage: Stage, given: Given, following: str) -> None:
    """Run a training stage and say how it ended, where its run is and what to do next.

    Args:
        stage: Which stage.
        given: Its options.
        following: Command that comes next, with ``{run}`` for the run.
    """
    run = make(stage, given)
    if run is None:
        return
    if not run.env["dataset"]["class_names"]:
        following = "smallvit finetune --init {run} --data IMAGES-WITH-LABELS"
    say(f"{describe_outcome(run)}\nrun: {run.path}\nnext: {following.format(run=run.path)}")
