"""The stages as Python functions, with the same settings as the command line."""

from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.config import merge, nest
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run
from smallvit.run.adopt import run_teacher
from smallvit.run.chain import add_token_labels
from smallvit.run.label import run_label
from smallvit.run.recipe import Recipe, Stage, load_recipe, say_fit, with_values
from smallvit.run.stage import run_stage
from smallvit.run.start import TIMM, start_settings

RunLike = Run | Path | str
SHORT = {
    "dataset": "data.dataset",
    "data": "data.path",
    "seed": "seed",
    "device": "runtime.device",
    "precision": "runtime.precision",
}


def pretrain(
    *,
    init: RunLike | None = None,
    recipe: str | None = None,
    out: Path | str | None = None,
    **settings: Any,
) -> Run:
    """Run stage 1: ``pretrain(dataset="digits", epochs=20, optim={"lr": 1e-3})``.

    Args:
        init: Run or export to go on from, or ``"timm:NAME"`` for timm's weights; without a recipe
            it brings its model, and a run its data. ``None`` is what the recipe says.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        out: Run folder; by default a new one under the runs folder.
        **settings: ``dataset`` or ``data``, ``model``, ``method`` (a name or a mapping), ``seed``,
            ``device``, ``precision``, ``epochs``, ``batch_size``, or a section of the stage as a
            mapping.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _train("pretrain", _resolve("pretrain", recipe, settings, init), out)


def teacher(*, recipe: str | None = None, out: Path | str | None = None, **settings: Any) -> Run:
    """Train the annotator of stage 2, or take the network that ``adopt`` names.

    Arguments are those of ``pretrain``.
    """
    run = run_teacher(_resolve("teacher", recipe, settings), out=None if out is None else Path(out))
    assert run is not None
    return run


def label(
    teacher: RunLike, *, recipe: str | None = None, out: Path | str | None = None, **settings: Any
) -> Run:
    """Write a teacher's score maps; by default of the data that it was trained on."""
    folder = _folder(teacher)
    own = recipe or str(folder / "recipe.yaml")
    resolved = _resolve("label", own, settings, same_data=recipe is None)
    resolved = with_values(resolved, {"label": {"teacher": str(folder)}})
    run = run_label(resolved, out=None if out is None else Path(out))
    assert run is not None
    return run


def finetune(
    *,
    init: RunLike | None = None,
    token_label: bool | None = None,
    teacher: RunLike | None = None,
    score_maps: Path | str | None = None,
    recipe: str | None = None,
    out: Path | str | None = None,
    **settings: Any,
) -> Run:
    """Run stage 2: ``finetune(dataset="digits", init=run, token_label=True)``.

    Args:
        init: Run or export to start from, ``"timm:NAME"`` for timm's weights, or ``"scratch"``,
            which ``None`` is as well unless the recipe says otherwise. Without a recipe it brings
            its model, and a run its data.
        token_label: Supervise patch tokens too; a teacher and maps that are missing are made.
            ``None`` is what the recipe says.
        teacher: Run of the teacher that writes the score maps.
        score_maps: File of score maps written before.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        out: Run folder; by default a new one under the runs folder.
        **settings: As for ``pretrain``.
    """
    resolved = _resolve("finetune", recipe, settings, init)
    if token_label is not None:
        over = {"token_label": {"enabled": token_label}}
        resolved = with_values(resolved, {"finetune": over})
    if resolved.finetune.init is None:
        resolved = with_values(resolved, {"finetune": {"init": "scratch"}})
    if resolved.finetune.token_label.enabled:
        folder = None if teacher is None else _folder(teacher)
        if score_maps is not None:
            maps = str(places.absolute(score_maps))
            resolved = with_values(resolved, {"finetune": {"score_maps": maps}})
        resolved = add_token_labels(resolved, folder, [])
    elif teacher is not None or score_maps is not None:
        raise ConfigError("teacher and score_maps need token_label=True")
    return _train("finetune", resolved, out)


def _resolve(
    stage: Stage,
    recipe: str | None,
    settings: dict[str, Any],
    init: RunLike | None = None,
    *,
    same_data: bool = False,
) -> Recipe:
    overrides: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "data" and str(value).startswith("hf:"):
            key = "dataset"
        is_path = isinstance(value, Path) or (key == "data" and isinstance(value, str))
        plain = str(places.absolute(value)) if is_path else value
        overrides = merge(overrides, nest({_place(stage, key, value): plain}))
    path = overrides.get("data", {}).get("path")
    if path is not None:  # written to recipe.yaml, which must run again from any folder
        overrides = merge(overrides, {"data": {"path": str(places.absolute(path))}})
    if init is not None:
        named = init == "scratch" or str(init).startswith(TIMM)
        start = str(init) if named else str(_folder(init))
        overrides = merge(overrides, {stage: {"init": start}})
        if init != "scratch" and recipe is None:
            overrides = merge(start_settings(start, overrides), overrides)
    found, name = load_recipe(recipe, overrides, source="arguments", same_data=same_data)
    say_fit(found, name)
    return found


def _place(stage: Stage, key: str, value: Any) -> str:
    """Return the place in a recipe of one keyword argument."""
    if key in ("epochs", "batch_size"):
        return f"{stage}.{'schedule' if key == 'epochs' else 'optim'}.{key}"
    if key == "model" and isinstance(value, str):
        return "teacher.model.name" if stage == "teacher" else "model.name"
    if key == "method" and isinstance(value, str):
        return f"{stage}.method.name"
    if key in SHORT and not isinstance(value, dict):
        return SHORT[key]
    shared = key.split(".")[0] in ("data", "model", "runtime", "log")
    return key if shared and not (stage == "teacher" and key == "model") else f"{stage}.{key}"


def _train(stage: Stage, recipe: Recipe, out: Path | str | None) -> Run:
    run = run_stage(recipe, stage, out=None if out is None else Path(out))
    assert run is not None
    return run


def _folder(run: RunLike) -> Path:
    return places.absolute(run.path if isinstance(run, Run) else run)
