"""The stages as Python functions, with the same settings as the command line."""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from smallvit.core import places
from smallvit.core.alone import alone
from smallvit.core.config import merge, nest, paths, show
from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.core.python_call import python_call
from smallvit.core.run_folder import Run
from smallvit.core.words import alike, either, meant, unneeded
from smallvit.data.files.registry import DATASETS
from smallvit.runs.adopt import run_teacher
from smallvit.runs.chain import add_token_labels
from smallvit.runs.config import (
    FinetuneConfig,
    LabelConfig,
    PretrainConfig,
    Recipe,
    Stage,
    TeacherConfig,
)
from smallvit.runs.label import run_label
from smallvit.runs.outcome import describe_outcome
from smallvit.runs.recipe import (
    load_recipe,
    open_unfinished,
    say_fit,
    with_absolute_paths,
    with_values,
)
from smallvit.runs.stage import run_stage
from smallvit.runs.start import TIMM, start_settings

logger = logging.getLogger("smallvit")
RunLike = Run | Path | str
DataLike = Path | str | Mapping[str, Any]
CONFIGS: dict[Stage, type] = {
    "pretrain": PretrainConfig,
    "teacher": TeacherConfig,
    "label": LabelConfig,
    "finetune": FinetuneConfig,
}
SHARED = ("data", "model", "runtime", "log")
# Arguments whose place in a recipe is not their name; {stage} is the stage of the function.
PLACES = {
    "dataset": "data.dataset",
    "allow_leak": "data.allow_leak",
    "seed": "seed",
    "device": "runtime.device",
    "precision": "runtime.precision",
    "compile": "runtime.compile",
    "deterministic": "runtime.deterministic",
    "grad_checkpointing": "runtime.grad_checkpointing",
    "micro_batch": "runtime.micro_batch",
    "epochs": "{stage}.schedule.epochs",
    "batch_size": "{stage}.optim.batch_size",
}
OF_CALLS = ("data", "recipe", "out", "resume", "overwrite", "offline", "dry_run", "verbose")


@alone
def pretrain(
    data: DataLike | None = None,
    *,
    init: RunLike | None = None,
    recipe: Path | str | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Run | None:
    """Run stage 1: ``pretrain("digits", epochs=20, optim={"lr": 1e-3})``.

    Args:
        data: Name of a data set, path of images, or a mapping of data settings.
        init: Run or export to go on from, or ``"timm:NAME"`` for timm's weights; without a recipe
            it brings its model, and a run its data. ``None`` is what the recipe says.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check settings, data and model, take one step, write nothing.
        verbose: Show progress, in a notebook in one line.
        **settings: ``dataset``, ``model`` (a name or a mapping), ``method`` (likewise), ``epochs``,
            ``batch_size``, ``seed``, ``device``, ``precision``, or a section of the stage as a
            mapping.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    with python_call(verbose=verbose, offline=offline):
        resolved = _resolve("pretrain", data, recipe, settings, init=init, resume=resume)
        return _train("pretrain", resolved, out, resume, overwrite, dry_run)


@alone
def teacher(
    data: DataLike | None = None,
    *,
    recipe: Path | str | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Run | None:
    """Train the annotator of stage 2, or take the network that ``adopt`` names.

    Arguments are those of ``pretrain``; ``adopt`` is a run, an export, a file of weights or
    ``"timm:NAME"``.
    """
    with python_call(verbose=verbose, offline=offline):
        resolved = _resolve("teacher", data, recipe, settings, resume=resume)
        return _train("teacher", resolved, out, resume, overwrite, dry_run)


@alone
def label(
    teacher: RunLike | None = None,
    *,
    data: DataLike | None = None,
    recipe: Path | str | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Run | None:
    """Write a teacher's score maps; by default of the data that it was trained on.

    Args:
        teacher: Run of the teacher; only a run to continue knows its own.
        data: Other images to label.
        recipe: Shipped recipe or file; by default the teacher's.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check everything and label one batch, write nothing.
        verbose: Show progress, in a notebook in one line.
        **settings: As for ``pretrain``, and of the maps ``top_k``, ``temperature``, ``flip``.
    """
    with python_call(verbose=verbose, offline=offline):
        if teacher is not None:
            folder = _folder("teacher", teacher)
            own = None if resume else str(folder / "recipe.yaml")
            settings = {**settings, "label.teacher": str(folder)}
        elif resume is None:
            raise ConfigError("label needs the run of a teacher: sv.teacher(...) trains one")
        else:
            own = None
        same = recipe is None
        recipe = own if same else recipe
        if same and resume is None and not isinstance(data, Mapping):
            # What the teacher was let build on is not asked for here.
            settings = {"data.allow_leak": False, **settings}
        resolved = _resolve("label", data, recipe, settings, resume=resume, same_data=same)
        return _train("label", resolved, out, resume, overwrite, dry_run)


@alone
def finetune(
    data: DataLike | None = None,
    *,
    init: RunLike | None = None,
    token_label: bool | Mapping[str, Any] | None = None,
    teacher: RunLike | None = None,
    score_maps: RunLike | None = None,
    recipe: Path | str | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Run | None:
    """Run stage 2: ``finetune("digits", init=run, token_label=True)``.

    Args:
        data: Name of a data set, path of images, or a mapping of data settings.
        init: Run or export to start from, ``"timm:NAME"`` for timm's weights, or ``"scratch"``,
            which ``None`` is as well unless the recipe says otherwise. Without a recipe it brings
            its model, and a run its data.
        token_label: Supervise patch tokens too; a teacher and maps that are missing are made. A
            mapping gives its settings. ``None`` is what the recipe says.
        teacher: Run of the teacher that writes the score maps.
        score_maps: File of score maps written before, or their run.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check settings, data and model, take one step, write nothing.
        verbose: Show progress, in a notebook in one line.
        **settings: As for ``pretrain``.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    with python_call(verbose=verbose, offline=offline):
        if isinstance(token_label, Mapping):
            settings = {**settings, "token_label": {"enabled": True, **token_label}}
        elif token_label is not None:
            settings = {**settings, "token_label.enabled": token_label}
        resolved = _resolve("finetune", data, recipe, settings, init=init, resume=resume)
        named = teacher is not None or score_maps is not None
        if named and not resolved.finetune.token_label.enabled:
            raise ConfigError("teacher and score_maps need token_label=True")
        if resume is None:
            resolved = _complete(resolved, teacher, score_maps)
        elif named:
            raise ConfigError("resume keeps its score maps: leave teacher and score_maps out")
        return _train("finetune", resolved, out, resume, overwrite, dry_run)


def _complete(recipe: Recipe, teacher: RunLike | None, score_maps: RunLike | None) -> Recipe:
    """Fill in start, teacher and maps of stage 2 where the recipe leaves them open."""
    if recipe.finetune.init is None:
        recipe = with_values(recipe, {"finetune": {"init": "scratch"}})
    if not recipe.finetune.token_label.enabled:
        return recipe
    if score_maps is not None:
        maps = str(_folder("score_maps", score_maps))
        recipe = with_values(recipe, {"finetune": {"score_maps": maps}})
    folder = None if teacher is None else _folder("teacher", teacher)
    return add_token_labels(recipe, folder, [])


def _resolve(
    stage: Stage,
    data: DataLike | None,
    recipe: Path | str | None,
    settings: Mapping[str, Any],
    *,
    init: RunLike | None = None,
    resume: RunLike | None = None,
    same_data: bool = False,
) -> Recipe:
    """Return the recipe that the arguments of a function come to.

    ``same_data`` tells that the data named are those of the recipe in another place.
    """
    overrides: dict[str, Any] = {} if data is None else {"data": _data_settings(data)}
    for key, value in settings.items():
        _check_known(stage, key)
        overrides = merge(overrides, nest({_place(stage, key, value): _plain(value)}))
    overrides = with_absolute_paths(overrides)
    if init is not None:
        named = init == "scratch" or str(init).startswith(TIMM)
        start = str(init) if named else str(_folder("init", init))
        overrides = merge(overrides, {stage: {"init": start}})
        if init != "scratch" and recipe is None and resume is None:
            overrides = merge(start_settings(start, overrides), overrides)
    if resume is not None:
        if recipe is not None:
            raise ConfigError("resume brings its own recipe: leave recipe out")
        folder = _folder("resume", resume)
        open_unfinished(folder, stage)
        own = str(folder / "recipe.yaml")
        return load_recipe(own, overrides, source="arguments", same_data=True)[0]
    if recipe is not None and (not isinstance(recipe, str | Path) or not str(recipe).strip()):
        raise ConfigError(f"recipe must be the name or the file of one, got {show(recipe)}")
    name = None if recipe is None else str(recipe)
    resolved, found = load_recipe(name, overrides, source="arguments", same_data=same_data)
    logger.info("recipe: %s", found)
    say_fit(resolved, found)
    return resolved


def _data_settings(data: Any) -> dict[str, Any]:
    """Return what names the data: a data set, a path, or a whole section."""
    if isinstance(data, Mapping):
        return dict(data)
    if not isinstance(data, str | Path):
        what = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
        raise ConfigError(
            f"data must be the name of a data set, a path or a mapping of settings, got a {what}: "
            "for images and labels that a program holds write a folder of class folders, or a CSV "
            "file with the columns image_path and label"
        )
    name = str(data)
    if not name.strip():
        raise ConfigError("data is empty: name a data set or a path, or leave it out")
    if name in DATASETS or name.startswith("hf:"):
        return {"dataset": name}
    if isinstance(data, str) and name.replace("-", "").isalnum() and not Path(name).exists():
        raise UnknownNameError("dataset", name, DATASETS)
    return {"path": name}


def _check_known(stage: Stage, key: str) -> None:
    """Refuse an argument that no setting has, and name the one that is meant."""
    of_stage = CONFIGS[stage]
    arguments = {*OF_CALLS, *PLACES, *SHARED, "init", "token_label", "teacher", "score_maps"}
    if key in arguments or key.partition(".")[0] in {*get_type_hints(of_stage), *SHARED, stage}:
        return
    shared = [f"{name}.{path}" for name in SHARED for path in _paths_of(name)]
    known = [*arguments, *paths(of_stage), *shared]
    said = f"{stage}() has no argument {key!r}"
    near = meant(key, known)
    if not near and (reason := unneeded(key)):
        raise ConfigError(f"{said}: {reason}")
    near = near or alike(key, known)
    if near:
        raise ConfigError(f"{said}; did you mean {either([_as_argument(name) for name in near])}?")
    raise ConfigError(f"{said}: docs/python.md lists those there are")


def _paths_of(section: str) -> list[str]:
    (field,) = (field for field in dataclasses.fields(Recipe) if field.name == section)
    assert isinstance(field.type, type)
    return list(paths(field.type))


def _as_argument(name: str) -> str:
    """Write a setting as an argument: ``optim={"lr": ...}``."""
    name, _, value = name.partition(" ")
    section, _, key = name.rpartition(".")
    shown = f'"{value}"' if value else "..."
    return f'{section}={{"{key}": {shown}}}' if section else f"{key}={shown}"


def _place(stage: Stage, key: str, value: Any) -> str:
    """Return the place in a recipe of one keyword argument."""
    if key in PLACES and not isinstance(value, Mapping):
        return PLACES[key].format(stage=stage)
    if key == "model" and isinstance(value, str):
        return "teacher.model.name" if stage == "teacher" else "model.name"
    if key == "method" and isinstance(value, str):
        return f"{stage}.method.name"
    section = key.split(".")[0]
    own = section == stage or (section in SHARED and not (stage == "teacher" and key == "model"))
    return key if own else f"{stage}.{key}"


def _plain(value: Any) -> Any:
    """Return a value as a recipe has it: a run its folder, a number of numpy's Python's own."""
    if isinstance(value, Run):
        return str(places.absolute(value.path))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return str(value) if type(value).__name__ == "device" else value


def _train(
    stage: Stage,
    recipe: Recipe,
    out: Path | str | None,
    resume: RunLike | None,
    overwrite: bool,
    dry_run: bool,
) -> Run | None:
    work: Any = {"teacher": run_teacher, "label": run_label}
    run = work.get(stage, partial(run_stage, stage=stage))(
        recipe,
        out=None if out is None else _folder("out", out),
        overwrite=overwrite,
        resume=None if resume is None else _folder("resume", resume),
        dry_run=dry_run,
    )
    if run is not None and stage != "label":
        logger.info("%s", describe_outcome(run))
    if run is not None:
        logger.info("run: %s", run.path)
    return run


def _folder(name: str, run: Any) -> Path:
    if not isinstance(run, Run | Path | str):
        raise ConfigError(f"{name} must be a run or a path, got {show(run)}")
    if not isinstance(run, Run) and not str(run).strip():
        raise ConfigError(f"{name} is empty: name a run or a path, or leave it out")
    return places.absolute(run.path if isinstance(run, Run) else run)
