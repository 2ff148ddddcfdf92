"""``smallvit finetune``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import GivenOptions, Switch
from smallvit.cli.training import StageOptions, call_of, say_end
from smallvit.data.config import AugmentConfig
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig


def finetune_command(
    *,
    use_token_labels: Annotated[bool, Parameter(name="--token-label", negative="")] = False,
    init: str | None = None,
    teacher: Path | None = None,
    score_maps: Path | None = None,
    allow_leak: Switch = False,
    given: GivenOptions,
    common: StageOptions = StageOptions(),
    token_label: TokenLabelConfig = TokenLabelConfig(),
    method: SupervisedConfig = SupervisedConfig(),
    augment: AugmentConfig = AugmentConfig(),
) -> None:
    """Stage 2: train on labels and, with --token-label, patch by patch on score maps.

    With --token-label alone it continues from the newest pretrain run (of the data named, if any)
    and makes the teacher and score maps that are missing. Values that are not given are the
    recipe's.

    Args:
        use_token_labels: Supervise every patch token with a teacher's score map.
        init: Run or export to start from, ``timm:NAME`` for timm's weights, or ``scratch``.
        teacher: Run of the teacher that writes the score maps, or with --token-label.source online
            labels each batch.
        score_maps: File of score maps written before, or their run.
        allow_leak: Take weights, teacher or maps that may have seen held-out images, and record it.
        given: What of these was given.
        common: What every stage takes.
        token_label: Settings of token labeling.
        method: Loss on the image label.
        augment: Augmentation.
    """
    from smallvit.runs.stage import run_stage  # late: help is to be quick

    run = run_stage(*call_of("finetune", given))
    say_end(run, "smallvit bench {run}")
