"""The stages of a recipe one after the other, and finding what stage 2 can build on."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.config import to_plain
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, find_runs, new_folder
from smallvit.data.loader import Dataset
from smallvit.models.registry import ModelConfig
from smallvit.run.adopt import run_teacher
from smallvit.run.data import load_dataset, require_labels
from smallvit.run.label import SCORE_MAPS, run_label
from smallvit.run.recipe import (
    Arm,
    Recipe,
    Stage,
    differences,
    run_values,
    stage_values,
    with_values,
)
from smallvit.run.stage import run_stage

logger = logging.getLogger("smallvit")
ARM_NAMES: dict[Arm, str] = {
    "scratch": "scratch",
    "ssl": "SSL start",
    "token-labels": "token labels",
    "both": "both",
}


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
    dataset = load_dataset(recipe.data)
    require_labels(dataset, "`smallvit run`")  # before stage 1 takes hours
    label = f"run-{recipe.model.name}-s{recipe.seed}"
    folder = places.absolute(out or new_folder(places.runs_dir(), dataset.name, label))
    pretrained, labels = None, {}
    if {"ssl", "both"} & set(recipe.arms):
        pretrained = _stage(recipe, "pretrain", folder / "pretrain", argv)
    source = recipe.finetune.token_label.source
    if {"token-labels", "both"} & set(recipe.arms) and source != "ema":
        teacher = _stage(recipe, "teacher", folder / "teacher", argv)
        labels = {"teacher": str(teacher.path)}
        if source == "stored":
            labels = {"score_maps": str(_label(recipe, teacher, folder / "label", argv))}
    runs = []
    for arm in recipe.arms:
        settings: dict[str, Any] = {
            "init": "scratch",
            "token_label": {"enabled": arm in ("token-labels", "both")},
        }
        if arm in ("ssl", "both") and pretrained is not None:
            settings["init"] = str(pretrained.path)
        if arm in ("token-labels", "both"):
            settings |= labels
        armed = with_values(recipe, {"finetune": settings})
        runs.append(_stage(armed, "finetune", folder / f"finetune-{arm}", argv))
    return folder, runs


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
    if source == "ema":
        if teacher is not None:
            raise ConfigError("token_label.source ema has no teacher: leave --teacher out")
        return recipe
    if source == "online":
        named = teacher or config.teacher or _find_teacher(recipe, argv)
        return with_values(recipe, {"finetune": {"teacher": str(places.absolute(named))}})
    if config.score_maps is not None and teacher is None:
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
    dataset = load_dataset(recipe.data)
    if teacher is None:
        maps = newest_run(dataset, "label", same=("labelled", "val", "test"))
        if maps is not None and (maps.path / SCORE_MAPS).is_file():
            logger.info("score maps: %s", maps.path / SCORE_MAPS)
            return maps.path / SCORE_MAPS
        teacher = _find_teacher(recipe, argv)
    logger.info("writing score maps with %s", teacher)
    settings = {
        "teacher": str(teacher),
        "allow_leak": recipe.finetune.allow_leak or recipe.label.allow_leak,
    }
    run = run_label(with_values(recipe, {"label": settings}), argv=argv)
    assert run is not None
    return run.path / SCORE_MAPS


def _find_teacher(recipe: Recipe, argv: Sequence[str]) -> Path:
    """Return the newest teacher of the same data and split; train one where there is none."""
    dataset = load_dataset(recipe.data)
    found = newest_run(dataset, "teacher", same=("labelled", "val", "test"))
    if found is None:
        logger.info("no teacher of %s under %s: training one", dataset.name, places.runs_dir())
        found = run_teacher(recipe, argv=argv)
        assert found is not None
    return found.path


def newest_run(
    dataset: Dataset, stage: Stage, *, same: Sequence[str], model: ModelConfig | None = None
) -> Run | None:
    """Return the newest finished run of a stage on the same images and splits, if there is one.

    Args:
        dataset: Images and splits that must be the same.
        stage: Stage of the run.
        same: Splits whose hash must agree.
        model: Settings that its network must have; ``None`` takes any. A run passed over for its
            network is named.
    """
    newest = None
    for run in find_runs(places.runs_dir()):
        if not run.completed or run.result["stage"] != stage:
            continue
        env = run.env
        if env["dataset"]["fingerprint"] == dataset.fingerprint and all(
            env["split_hashes"][split] == dataset.split_hashes[split] for split in same
        ):
            theirs = run_values(run, stage).get("model") if model else None
            changed = differences(theirs, to_plain(model)) if model else ()
            if changed:
                logger.info("passing over %s: model.%s", run.path, "; model.".join(changed))
            else:
                newest = run
    return newest


def _stage(recipe: Recipe, stage: Stage, folder: Path, argv: Sequence[str]) -> Run:
    run = _finished(recipe, stage, folder)
    if run is not None:
        return run
    unfinished = folder if (folder / "result.json").is_file() else None
    run_it = run_teacher if stage == "teacher" else partial(run_stage, stage=stage)
    made = run_it(recipe, out=folder, resume=unfinished, argv=argv)
    assert made is not None
    return made


def _label(recipe: Recipe, teacher: Run, folder: Path, argv: Sequence[str]) -> Path:
    recipe = with_values(recipe, {"label": {"teacher": str(teacher.path)}})
    if _finished(recipe, "label", folder) is None:
        unfinished = folder if (folder / "result.json").is_file() else None
        run_label(recipe, out=folder, resume=unfinished, argv=argv)
    return folder / SCORE_MAPS


def _finished(recipe: Recipe, stage: Stage, folder: Path) -> Run | None:
    """Return the finished run in ``folder``, or ``None``.

    Raises:
        ConfigError: If it was made with other settings.
    """
    run = Run(folder)
    if not run.completed:
        return None
    changed = differences(run_values(run, stage), stage_values(recipe, stage))
    if changed:
        raise ConfigError(
            f"{folder} was made with other settings ({'; '.join(changed[:5])}): choose another "
            "--out, or remove it"
        )
    logger.info("%s: complete already in %s", stage, folder)
    return run
