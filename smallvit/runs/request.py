"""What a stage is asked for, on the command line or from Python, and its recipe."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from smallvit.core import places
from smallvit.core.config import Layer, merge
from smallvit.core.config import resolve as resolve_layers
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import open_classifier
from smallvit.core.words import either
from smallvit.engine.runtime import say_precision
from smallvit.inference.export import exported_model
from smallvit.models.registry import settings_of
from smallvit.pretraining.config import METHODS, DinoConfig, get_method
from smallvit.runs.adopt import adopt_settings
from smallvit.runs.chain import add_token_labels, newest_run
from smallvit.runs.config import AnyStage, Call, Recipe, SegmentRecipe
from smallvit.runs.data import load_dataset
from smallvit.runs.init_weights import TIMM, find_export, init_settings
from smallvit.runs.options import to_settings
from smallvit.runs.recipe import (
    find_recipe,
    load_recipe,
    open_unfinished,
    read_layer,
    say_fit,
    section_of,
    with_values,
)

logger = logging.getLogger("smallvit")
# Options that a network to adopt has no use for, by the part before a dot.
OF_TRAINING = (
    *("epochs", "batch_size", "resume", "method", "augment", "optim", "schedule", "log"),
    "grad_checkpointing",
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A stage and what was given for it.

    Attributes:
        stage: Which stage.
        options: What was given, by option: ``{"epochs": 2, "optim.lr": 1e-3}``.
        argv: Command line, for env.json.
        source: What to call the options in messages.
        continues: Whether token labeling takes the newest pretrain run where no init is named.
    """

    stage: AnyStage
    options: Mapping[str, Any]
    argv: Sequence[str] = ()
    source: str = "command line"
    continues: bool = True

    @property
    def recipe(self) -> str | None:
        """Shipped recipe or file that was named."""
        recipe = self.options.get("recipe")
        return None if recipe is None else str(recipe)

    @property
    def resume(self) -> Path | None:
        """Run to continue."""
        return self.options.get("resume")

    @property
    def call(self) -> Call:
        """How the stage is called."""
        names = ("out", "overwrite", "resume", "dry_run")
        named = {key: self.options[key] for key in names if key in self.options}
        return Call(**named, argv=self.argv)

    def settings(self) -> dict[str, Any]:
        """Return what was given as nested settings."""
        return to_settings(self.options, self.stage)


def resolve(request: Request) -> Recipe | SegmentRecipe:
    """Return the recipe that is asked for; what token labels lack is made on the way.

    Raises:
        SmallViTError: If options or data are at fault.
    """
    resolvers = {
        "pretrain": _pretrain_recipe,
        "teacher": _teacher_recipe,
        "label": _label_recipe,
        "finetune": _finetune_recipe,
        "segment": _segment_recipe,
    }
    return resolvers[request.stage](request)


def open_recipe(name: str | None, settings: Mapping[str, Any], **how: Any) -> tuple[Recipe, str]:
    """Resolve a recipe as ``load_recipe`` does; say which one it is and what it is not made for."""
    recipe, label = load_recipe(name, settings, **how)
    logger.info("recipe: %s", label)
    say_fit(recipe, label)
    say_precision(recipe.runtime)
    return recipe, label


def _open(
    request: Request, settings: Mapping[str, Any], *, default: str | None = None, **how: Any
) -> Recipe:
    """Resolve the recipe of a stage; a run to continue brings its own.

    Args:
        request: What was asked for.
        settings: Nested settings that win.
        default: File of the recipe where none was named.
        **how: Further arguments of ``load_recipe``.
    """
    if request.resume is None:
        return open_recipe(request.recipe or default, settings, source=request.source, **how)[0]
    return load_recipe(_own_recipe(request), settings, source=request.source, same_data=True)[0]


def _own_recipe(request: Request) -> str:
    """Return the file with the settings of the run to continue."""
    assert request.resume is not None
    if request.recipe is not None:
        raise ConfigError("--resume brings its own recipe: leave --recipe out")
    open_unfinished(request.resume, request.stage)
    return str(request.resume / "recipe.yaml")


def _with_init(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    """Add what the weights named bring, where neither a recipe nor a run to continue is named."""
    init = settings.get(request.stage, {}).get("init")
    if init in (None, "scratch") or request.recipe is not None or request.resume is not None:
        return settings
    return merge(init_settings(init, settings), settings)


def _pretrain_recipe(request: Request) -> Recipe:
    name = request.options.get("method")
    if name is not None:
        _check_method(name, request.options)
        _compare_method(name, request)
    return _open(request, _with_init(request, request.settings()))


def _check_method(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a method that there is none of, and options of others than the one named."""
    takes = get_type_hints(get_method(name))
    for option in options:
        section, _, key = option.partition(".")
        key = key.partition(".")[0]
        if section == "method" and key and key not in takes:
            takers = [other for other in METHODS if key in get_type_hints(METHODS[other])]
            if not takers:
                continue  # a slip, which the recipe's check names
            raise ConfigError(
                f"--method.{key.replace('_', '-')} is an option of {either(takers, 'and')}, "
                f"not of {name}: leave it out"
            )


def _compare_method(name: str, request: Request) -> None:
    """Refuse to resume with another method; say what another one leaves out of a recipe."""
    path = find_recipe(request.recipe) if request.recipe is not None else None
    if request.resume is not None:
        path = request.resume / "recipe.yaml"
    own = _method_of(path) if path is not None and path.is_file() else None
    if own in (None, name):
        return
    if request.resume is not None:
        raise ConfigError(
            f"--resume {request.resume} continues a run of method {own}: leave --method {name} "
            "out, or start a new run with --init"
        )
    logger.info("%s has settings of method %s: left out for %s", request.recipe, own, name)


def _method_of(path: Path) -> str | None:
    """Return the method that a recipe has settings of."""
    method = section_of(section_of(read_layer(path).values, "pretrain"), "method")
    return method.get("name", DinoConfig().name) if method else None


def _teacher_recipe(request: Request) -> Recipe:
    settings = request.settings()
    init = settings.get("teacher", {}).get("adopt")
    if init is None:
        if request.options.get("allow_leak") or request.options.get("data.allow_leak"):
            raise ConfigError("--allow-leak needs --from")
        return _open(request, settings)
    for option in request.options:
        if option.partition(".")[0] in OF_TRAINING:
            shown = option.replace("_", "-")
            raise ConfigError(
                f"--from takes a network as it is and trains none: leave --{shown} out"
            )
    brought = adopt_settings(init, settings)
    if request.recipe is not None:
        brought.pop("data", None)
    brought = merge(brought, {"data": {"allow_leak": False}})  # a recipe's is for its own
    return _open(request, merge(brought, settings))


def _label_recipe(request: Request) -> Recipe:
    teacher, settings = request.options.get("teacher"), request.settings()
    default = None
    if request.resume is None and teacher is not None:
        own = open_classifier(teacher, "--teacher").path / "recipe.yaml"
        default = str(own) if own.is_file() else None
    elif request.resume is None and request.recipe is None:
        raise ConfigError("no teacher named: give --teacher RUN; 'smallvit teacher' trains one")
    if request.recipe is None and request.resume is None:
        # What the teacher was let build on is not asked for here.
        settings = merge({"data": {"allow_leak": False}}, settings)
    return _open(request, settings, default=default, same_data=request.recipe is None)


def _finetune_recipe(request: Request) -> Recipe:
    options = dict(request.options)
    # Not the setting of that name: it may write maps as well.
    teacher = options.pop("teacher", None)
    settings = to_settings(options, "finetune")
    named = (*map(settings.get("data", {}).get, ("dataset", "path")), options.get("init"))
    if (
        request.continues
        and options.get("token_label")
        and all(each is None for each in (*named, request.recipe, request.resume))
    ):
        settings = merge(settings, {"finetune": {"init": _newest_init()}})
    recipe = _open(request, _with_init(request, settings))
    enabled = recipe.finetune.token_label.enabled
    if teacher is not None and "score_maps" in options:
        raise ConfigError("--teacher and --score-maps exclude each other: give one")
    if (teacher is not None or "score_maps" in options) and not enabled:
        raise ConfigError("--teacher and --score-maps need --token-label")
    if request.resume is not None and teacher is not None:
        raise ConfigError("--resume keeps its score maps: leave --teacher out")
    of_labels = [key for key in options if key.startswith("token_label.")]
    if of_labels and not enabled:
        raise ConfigError(f"--{of_labels[0].replace('_', '-')} needs --token-label")
    return recipe if request.resume is not None else _complete(request, recipe, teacher)


def _newest_init() -> str:
    """Return the newest pretrain run of all, where not even the data was named, and say so."""
    found = newest_run(None, "pretrain")
    if found is None:
        raise ConfigError(
            f"no data named and no pretrain run under {places.runs_dir()}: give --dataset NAME or "
            "--data PATH, or run smallvit pretrain first"
        )
    result = found.result
    logger.info(
        "continuing from the newest pretrain run, on %s, started %s: %s",
        result["dataset"],
        result["started"],
        found.path,
    )
    return str(found.path)


def _segment_recipe(request: Request) -> SegmentRecipe:
    file = request.recipe
    if request.resume is not None:
        file = _own_recipe(request)
    elif file is not None and not Path(file).is_file():
        raise ConfigError(
            f"--recipe {file} is no file: none are shipped for segment, give one such as the "
            "recipe.yaml of an earlier run"
        )
    settings = request.settings()
    init = settings.get("segment", {}).get("init", "scratch")
    layers = [Layer(source=request.source, values=settings)]
    if file is not None:
        layers.insert(0, read_layer(Path(file)))
    elif init != "scratch":
        values = {"model": _segment_model(init, settings)}
        layers.insert(0, Layer(source=f"--init {init}", values=values))
    recipe = resolve_layers(SegmentRecipe, layers)
    if request.resume is None:
        say_precision(recipe.runtime)
    return recipe


def _segment_model(init: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model that weights bring, with patches of the size that it was trained with."""
    model = dict(init_settings(init, settings).get("model", {}))
    if model and not init.startswith(TIMM) and "patch_size" in settings_of(model["name"]):
        exported = exported_model(find_export(init))
        model["patch_size"] = exported.get("patch_size", model.get("patch_size"))
    return model


def _complete(request: Request, recipe: Recipe, teacher: Path | None) -> Recipe:
    """Fill in the init and the score maps of stage 2 that were not named, and say so."""
    config = recipe.finetune
    if config.init is None:
        continues = config.token_label.enabled and request.continues
        init = _init_for(recipe) if continues else "scratch"
        recipe = with_values(recipe, {"finetune": {"init": init}})
    if not config.token_label.enabled:
        return recipe
    if teacher is not None:
        open_classifier(teacher, "--teacher")
    named = config.score_maps
    if config.token_label.source == "online":
        named = teacher or config.teacher
    if request.call.dry_run and config.token_label.source != "ema" and named is None:
        logger.info("dry run: token labels are left out, their maps would be made first")
        return with_values(recipe, {"finetune": {"token_label": {"enabled": False}}})
    return add_token_labels(recipe, teacher, request.argv)


def _init_for(recipe: Recipe) -> str:
    """Return the newest pretrain run of a recipe's model and images, else ``scratch``."""
    dataset = load_dataset(recipe.data)
    found = newest_run(dataset, "pretrain", same=("val", "test"), model=recipe.model)
    if found is None:
        logger.info(
            "no pretrain run of this model on these images under %s: starting from scratch "
            "(smallvit pretrain makes one)",
            places.runs_dir(),
        )
        return "scratch"
    logger.info("continuing from %s", found.path)
    return str(found.path)
