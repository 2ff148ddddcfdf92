"""``smallvit teacher``."""

from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import GivenOptions, Switch
from smallvit.cli.training import StageOptions, call_of, say_end
from smallvit.data.config import AugmentConfig
from smallvit.finetuning.config import SupervisedConfig


def teacher_command(
    *,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    common: StageOptions = StageOptions(),
    method: SupervisedConfig = SupervisedConfig(),
    augment: AugmentConfig = AugmentConfig(),
) -> None:
    """Train the annotator of stage 2 on the same training split, or adopt a trained network.

    Values that are not given are the recipe's.

    Args:
        start: Trained network to take instead of training one: run, export, ``timm:NAME``, or a
            file of weights with --model. What has no class names, such as a pretrain run or timm's
            weights, gets a classifier.
        allow_leak: With --from, take a network that may have seen held-out images, and record it.
        given: What of these was given.
        common: What every stage takes.
        method: Loss.
        augment: Augmentation.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*call_of("teacher", given))
    say_end(run, "smallvit label --teacher {run}")
