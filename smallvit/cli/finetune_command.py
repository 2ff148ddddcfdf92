"""``smallvit finetune``."""

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallvit.cli.options import DataOptions, FolderOptions, TrainOptions, given, overrides
from smallvit.cli.training import load_for, say_done
from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.core.places import apply_offline
from smallvit.core.run_folder import find_runs, open_classifier
from smallvit.data.config import AugmentConfig
from smallvit.data.files.config import DataConfig
from smallvit.engine.config import LogConfig, OptimConfig, ScheduleConfig
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.runs.config import Recipe
from smallvit.runs.recipe import with_values

logger = logging.getLogger("smallvit")


def finetune_command(
    *,
    use_token_labels: Annotated[bool, Parameter(name="--token-label", negative="")] = False,
    init: Annotated[str | None, Parameter(name="--init")] = None,
    teacher: Annotated[Path | None, Parameter(name="--teacher")] = None,
    score_maps: Annotated[Path | None, Parameter(name="--score-maps")] = None,
    allow_leak: Annotated[bool, Parameter(name="--allow-leak", negative="")] = False,
    which: DataOptions = DataOptions(),
    training: TrainOptions = TrainOptions(),
    where: FolderOptions = FolderOptions(),
    data: DataConfig = DataConfig(),
    model: ModelConfig = ModelConfig(),
    token_label: TokenLabelConfig = TokenLabelConfig(),
    method: SupervisedConfig = SupervisedConfig(),
    augment: AugmentConfig = AugmentConfig(),
    optim: OptimConfig = OptimConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
    log: LogConfig = LogConfig(),
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
        allow_leak: Take a start, teacher or maps that may have seen held-out images, and record it.
        which: Data.
        training: Model and length.
        where: Folders.
        data: Data settings.
        model: Model settings.
        token_label: Settings of token labeling.
        method: Loss on the image label.
        augment: Augmentation.
        optim: Optimizer.
        schedule: Length and learning rate.
        log: How often to write.
    """
    from smallvit.runs.stage import run_stage
    from smallvit.runs.start import start_settings

    apply_offline(which.offline)
    given.values.pop("teacher", None)
    of_data = overrides("finetune").get("data", {})
    named = (*map(of_data.get, ("dataset", "path")), which.recipe, training.resume, init)
    if use_token_labels and all(value is None for value in named):
        init = given.values["init"] = _newest_start()
    if init not in (None, "scratch") and which.recipe is None and training.resume is None:
        settings = overrides("finetune")
        given.brought = start_settings(settings["finetune"]["init"], settings)
    recipe = load_for("finetune", which, training)
    enabled = recipe.finetune.token_label.enabled
    if teacher is not None and score_maps is not None:
        raise ConfigError("--teacher and --score-maps exclude each other: give one")
    if (teacher is not None or score_maps is not None) and not enabled:
        raise ConfigError("--teacher and --score-maps need --token-label")
    if training.resume is not None and teacher is not None:
        raise ConfigError("--resume keeps its score maps: leave --teacher out")
    of_labels = [key for key in given.values if key.startswith("token_label.")]
    if of_labels and not enabled:
        raise ConfigError(f"--{of_labels[0].replace('_', '-')} needs --token-label")
    if training.resume is None:
        recipe = _complete(recipe, teacher, dry_run=where.dry_run)
    run = run_stage(
        recipe,
        "finetune",
        out=where.out,
        overwrite=where.overwrite,
        resume=training.resume,
        dry_run=where.dry_run,
        argv=given.argv,
    )
    if run is not None:
        say_done(run, f"next: smallvit bench {run.path}")


def _newest_start() -> str:
    """Return the newest pretrain run of all, where not even the data was named, and say so."""
    found = [
        run
        for run in find_runs(places.runs_dir())
        if run.completed and run.result["stage"] == "pretrain"
    ]
    if not found:
        raise ConfigError(
            f"no data named and no pretrain run under {places.runs_dir()}: give --dataset NAME or "
            "--data PATH, or run smallvit pretrain first"
        )
    result = found[-1].result
    logger.info(
        "continuing from the newest pretrain run, on %s, started %s: %s",
        result["dataset"],
        result["started"],
        found[-1].path,
    )
    return str(found[-1].path)


def _complete(recipe: Recipe, teacher: Path | None, *, dry_run: bool) -> Recipe:
    """Fill in the start and the score maps that were not named, and say so."""
    from smallvit.runs.chain import add_token_labels, newest_run
    from smallvit.runs.data import load_dataset

    config = recipe.finetune
    if not config.token_label.enabled:
        return with_values(recipe, {"finetune": {"init": config.init or "scratch"}})
    if config.init is None:
        dataset = load_dataset(recipe.data)
        found = newest_run(dataset, "pretrain", same=("val", "test"), model=recipe.model)
        start = "scratch" if found is None else str(found.path)
        if found is None:
            logger.info(
                "no pretrain run of this model on these images under %s: starting from scratch "
                "(smallvit pretrain makes one)",
                places.runs_dir(),
            )
        else:
            logger.info("continuing from %s", start)
        recipe = with_values(recipe, {"finetune": {"init": start}})
    online = config.token_label.source == "online"
    if teacher is not None:
        open_classifier(teacher, "--teacher")
    named = config.score_maps is not None if not online else (teacher or config.teacher) is not None
    if dry_run and config.token_label.source != "ema" and not named:
        logger.info("dry run: token labels are left out, their maps would be made first")
        return with_values(recipe, {"finetune": {"token_label": {"enabled": False}}})
    return add_token_labels(recipe, teacher, given.argv)
