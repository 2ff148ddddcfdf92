"""``smallvit pretrain``."""

from smallvit.cli.method_options import MethodOptions
from smallvit.cli.options import GivenOptions, Switch
from smallvit.cli.training import StageOptions, call_of, say_end
from smallvit.runs.config import MonitorConfig


def pretrain_command(
    *,
    init: str | None = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    common: StageOptions = StageOptions(),
    method: MethodOptions = MethodOptions(),  # pyright: ignore[reportInvalidTypeForm]
    monitor: MonitorConfig = MonitorConfig(),
) -> None:
    """Stage 1: pretrain on the target images, without labels.

    With --init it is a new run that goes on from other weights, with fresh heads; --resume
    continues a run that was interrupted. Values that are not given are the recipe's.

    Args:
        init: Run or export to go on from, ``timm:NAME`` for timm's weights, or ``scratch``.
        allow_leak: Take weights that may have seen held-out images of this data; it is recorded.
        given: What of these was given.
        common: What every stage takes.
        method: What is learned, and its views.
        monitor: What is measured on the way.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*call_of("pretrain", given))
    say_end(run, "smallvit finetune --init {run} --token-label")
