"""The stages of a recipe one after the other, and finding what stage 2 can build on."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from smallvit.core import places
from smallvit.core.config import to_plain
from smallvit.core.console import format_duration
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.core.once import saying_once
from smallvit.core.run_folder import Run, find_runs, new_folder
from smallvit.data.dataset import Dataset
from smallvit.engine.forecast import Forecast
from smallvit.parallel.launch import refuse_several
from smallvit.runs.config import Call, Recipe, Stage
from smallvit.runs.data import check_out, load_dataset, require_labels
from smallvit.runs.label import SCORE_MAPS
from smallvit.runs.recipe import differences, list_changes, run_values, stage_values, with_values
from smallvit.runs.stage import foresee_stage, run_stage

logger = logging.getLogger("smallvit")
WORTH_PLANNING_S = 60.0
SAME_LABELS = ("labelled", "val", "test")  # splits of what a teacher learns and is scored on


@saying_once()
def run_recipe(
    recipe: Recipe, *, out: Path | None = None, argv: Sequence[str] = ()
) -> tuple[Path, list[Run]]:
    """Run every arm of a recipe and what the arms build on; a second call goes on where it was.

    Args:
        recipe: Resolved settings.
        out: Folder of all its runs; ``None`` names one under the runs folder.
        argv: Command line, for env.json.

    Returns:
        That folder, and the fine-tuned run of each arm in order.

    Raises:
        ConfigError: If a run in ``out`` was made with other settings.
    """
    if not recipe.arms:
        raise ConfigError("arms is empty: list some of scratch, ssl, token-labels, both")
    check_out(out, recipe.data)
    # Before stage 1 takes hours.
    dataset = require_labels(load_dataset(recipe.data), "`smallvit run`")
    label = f"run-{recipe.model.name}-s{recipe.seed}"
    folder = places.absolute(out or new_folder(places.runs_dir(), dataset.name, label))
    say_plan(recipe, folder)
    pretrained = teacher = maps = None
    needed = _needed(recipe)
    if "pretrain" in needed:
        pretrained = complete_stage(recipe, "pretrain", folder / "pretrain", argv).path
    if "teacher" in needed:
        teacher = complete_stage(recipe, "teacher", folder / "teacher", argv).path
        if recipe.finetune.token_label.source == "stored":
            labeling = with_values(recipe, {"label": {"teacher": str(teacher)}})
            maps = complete_stage(labeling, "label", folder / "label", argv).path / SCORE_MAPS
    runs = []
    for arm in recipe.arms:
        armed = arm_recipe(
            recipe,
            pretrained=pretrained if arm in ("ssl", "both") else None,
            token_label=arm in ("token-labels", "both"),
            teacher=teacher,
            score_maps=maps,
        )
        runs.append(complete_stage(armed, "finetune", folder / f"finetune-{arm}", argv))
    return folder, runs


def _needed(recipe: Recipe) -> list[Stage]:
    """Return the stages that are trained for the arms of a recipe to build on."""
    arms, needed = set(recipe.arms), list[Stage]()
    if {"ssl", "both"} & arms:
        needed.append("pretrain")
    if {"token-labels", "both"} & arms and recipe.finetune.token_label.source != "ema":
        needed.append("teacher")
    return needed


@saying_once()
def plan_recipe(recipe: Recipe, title: str) -> None:
    """Check the settings and data of a recipe and say how long its stages will take; write nothing.

    Args:
        recipe: Resolved settings.
        title: Name of the recipe.

    Raises:
        SmallViTError: If a stage cannot be trained with these settings, data or memory.
    """
    require_labels(load_dataset(recipe.data), "`smallvit run`")
    say_plan(recipe)
    logger.info("dry run of %s: settings and data are fine", title)


def say_plan(recipe: Recipe, folder: Path | None = None) -> None:
    """Say how long the stages of a recipe will take on this machine, and all of them together.

    Nothing is said of less than a minute, and on a CUDA device, where only the steps tell.

    Args:
        recipe: Resolved settings.
        folder: Of its runs; those that are complete there are left out.

    Raises:
        SmallViTError: If a stage cannot be trained with these settings, data or memory.
    """
    stages: list[tuple[str, Stage]] = [(f"finetune-{arm}", "finetune") for arm in recipe.arms]
    stages = [*((stage, stage) for stage in _needed(recipe)), *stages]
    left = [each for each in stages if folder is None or not Run(folder / each[0]).completed]
    forecasts: dict[Stage, Forecast] = {}
    named: list[Stage] = [stage for _, stage in left]
    for stage in dict.fromkeys(named):
        if stage == "teacher" and recipe.teacher.adopt is not None:
            continue
        with _quiet():
            forecast = foresee_stage(arm_recipe(recipe), stage)
        if forecast is None:
            return
        forecasts[stage] = forecast
    whole = sum(forecasts[stage].seconds for _, stage in left if stage in forecasts)
    if whole < WORTH_PLANNING_S:
        return
    for stage, forecast in forecasts.items():
        number = named.count(stage)
        times = f"{number} x " if number > 1 else ""
        most = forecast.micro_batch
        at_once = "" if most is None else f", {most} images at once (--micro-batch)"
        logger.info("plan: %s%s: %s%s", times, stage, forecast, at_once)
    if len(left) > 1:
        logger.info("plan: about %s for all steps together", format_duration(whole))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave to each stage what it says when it starts."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def arm_recipe(
    recipe: Recipe,
    *,
    pretrained: Path | None = None,
    token_label: bool = False,
    teacher: Path | None = None,
    score_maps: Path | None = None,
) -> Recipe:
    """Return the recipe of one arm of stage 2, which names the runs that it builds on.

    Args:
        recipe: Resolved settings.
        pretrained: Run that it starts from; ``None`` is from scratch.
        token_label: Whether its patch tokens are supervised.
        teacher: Run of the teacher, which ``token_label.source`` ``online`` reads.
        score_maps: File of score maps, which ``token_label.source`` ``stored`` reads.
    """
    token_labels = replace(recipe.finetune.token_label, enabled=token_label)
    init = "scratch" if pretrained is None else str(pretrained)
    config = replace(recipe.finetune, init=init, token_label=token_labels)
    if token_label and token_labels.source == "stored":
        config = replace(config, score_maps=score_maps)
    if token_label and token_labels.source == "online":
        config = replace(config, teacher=teacher)
    return replace(recipe, finetune=config)


def add_token_labels(recipe: Recipe, teacher: Path | None, argv: Sequence[str]) -> Recipe:
    """Fill in what the patch tokens of stage 2 learn from, where it is not named.

    Args:
        recipe: Resolved settings.
        teacher: Run of the teacher that was named beside them.
        argv: Command line, for env.json.

    Raises:
        ConfigError: If what was named is not what ``token_label.source`` reads.
    """
    config = recipe.finetune
    source = config.token_label.source
    if source != "stored" and config.score_maps is not None:
        raise ConfigError(f"token_label.source {source} reads no score maps: leave them out")
    if source == "ema" and teacher is not None:
        raise ConfigError("token_label.source ema has no teacher: leave --teacher out")
    if source == "online":
        named = teacher or config.teacher or _find_teacher(recipe, argv)
        return with_values(recipe, {"finetune": {"teacher": str(places.absolute(named))}})
    if source == "ema" or (config.score_maps is not None and teacher is None):
        return recipe
    maps = _make_score_maps(recipe, teacher, argv)
    return with_values(recipe, {"finetune": {"score_maps": str(maps)}})


def _make_score_maps(recipe: Recipe, teacher: Path | None, argv: Sequence[str]) -> Path:
    """Return score maps for a recipe: those there are, else from a teacher, trained if need be.

    Args:
        recipe: Resolved settings.
        teacher: Run of the teacher; ``None`` takes the newest of the same data and split.
        argv: Command line, for env.json.
    """
    if teacher is None:
        run = newest_run(load_dataset(recipe.data), "label")
        if run is not None and (run.path / SCORE_MAPS).is_file():
            logger.info("score maps: %s", run.path / SCORE_MAPS)
            return run.path / SCORE_MAPS
    refuse_several("writing score maps, which --score-maps would name,")
    teacher = teacher or _find_teacher(recipe, argv)
    logger.info("writing score maps with %s", teacher)
    labeling = with_values(recipe, {"label": {"teacher": str(teacher)}})
    run = run_stage(labeling, "label", Call(argv=argv))
    assert run is not None
    return run.path / SCORE_MAPS


def _find_teacher(recipe: Recipe, argv: Sequence[str]) -> Path:
    """Return the newest teacher of the same data and split; train one where there is none."""
    dataset = load_dataset(recipe.data)
    run = newest_run(dataset, "teacher")
    if run is None:
        logger.info("no teacher of %s under %s: training one", dataset.name, places.runs_dir())
        run = run_stage(recipe, "teacher", Call(argv=argv))
        assert run is not None
    return run.path


def newest_run(
    dataset: Dataset | None,
    stage: Stage,
    *,
    same: Sequence[str] = SAME_LABELS,
    model: ModelConfig | None = None,
) -> Run | None:
    """Return the newest finished run of a stage on the same images and splits, if there is one.

    Args:
        dataset: Images and splits that must be the same; ``None`` takes any.
        stage: Stage of the run.
        same: Splits whose hash must agree.
        model: Settings that its network must have; ``None`` takes any. A run passed over for its
            network is named.
    """
    newest = None
    for run in find_runs(places.runs_dir()):
        if not run.completed or run.result["stage"] != stage:
            continue
        if dataset is not None and (
            run.env["dataset"]["fingerprint"] != dataset.fingerprint
            or any(run.env["split_hashes"][part] != dataset.split_hashes[part] for part in same)
        ):
            continue
        changed: Sequence[str] = ()
        if model is not None:
            changed = differences(run_values(run, stage).get("model"), to_plain(model))
        if changed:
            logger.info("passing over %s: model.%s", run.path, "; model.".join(changed))
        else:
            newest = run
    return newest


def complete_stage(recipe: Recipe, stage: Stage, folder: Path, argv: Sequence[str] = ()) -> Run:
    """Return the finished run of a stage in ``folder``: as it is there, gone on with, or made.

    Args:
        recipe: Resolved settings.
        stage: Which stage.
        folder: Its run folder.
        argv: Command line, for env.json.

    Raises:
        ConfigError: If the run there was made with other settings.
    """
    refuse_other_settings(recipe, stage, folder)
    if Run(folder).completed:
        logger.info("%s: complete already in %s", stage, folder)
        return Run(folder)
    _clear_false_start(folder)
    unfinished = folder if (folder / "result.json").is_file() else None
    made = run_stage(recipe, stage, Call(out=folder, resume=unfinished, argv=argv))
    assert made is not None
    return made


def refuse_other_settings(recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Refuse a run in ``folder`` that was made with other settings; none there is fine.

    Raises:
        ConfigError: Naming the first few that differ.
        DataError: If its recipe.yaml is broken.
    """
    if not ((folder / "recipe.yaml").is_file() and (folder / "result.json").is_file()):
        return
    old, new = run_values(Run(folder), stage), stage_values(recipe, stage)
    # A later stage may need what was allowed.
    if changed := list_changes(old, new, but=("data.allow_leak",)):
        raise ConfigError(
            f"{folder} was made with other settings ({changed}): choose another --out, or remove it"
        )


def _clear_false_start(folder: Path) -> None:
    """Remove what a run leaves that was killed before its result.json: nothing was computed yet."""
    if not folder.is_dir() or (folder / "result.json").is_file():
        return
    own = {"recipe.yaml", "env.json", "checkpoints"}  # anything else is not of a run
    written = all(path.name in own or path.suffix == ".part" for path in folder.iterdir())
    if written and not any((folder / "checkpoints").glob("*")):
        shutil.rmtree(folder)
