"""Recipes: the typed settings of all stages, where they come from, and how they are found."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import smallvit
from smallvit.core import places
from smallvit.core.config import Layer, find_errors, merge, resolve, show, to_plain
from smallvit.core.errors import (
    LISTINGS,
    ConfigError,
    DataError,
    explained,
    reason,
    suggest,
)
from smallvit.core.run_folder import Run, name_version, what_is_at
from smallvit.data.files.registry import DATASETS
from smallvit.pretraining.config import DinoConfig, get_method
from smallvit.runs.config import AnyStage, Recipe, SegmentRecipe

logger = logging.getLogger("smallvit")
SHARED = ("seed", "data", "model", "runtime", "log")
BUILT_ON = (  # where what a run builds on is named
    "pretrain.init",
    "teacher.adopt",
    "label.teacher",
    "finetune.init",
    "finetune.score_maps",
    "finetune.teacher",
    "segment.init",
)
PATHS = ("data.path", *BUILT_ON)
# What a resumed run may change: the step stays as it is, and the same images may lie elsewhere.
FREE_AT_RESUME = (
    "runtime.micro_batch",
    "runtime.grad_checkpointing",
    "data.dataset",
    "data.path",
    "data.layout",
    "data.allow_leak",
)
OF_NAMED_DATA = ("dataset", "path", "image_column", "label_column", "hflip", "layout")


def recipes_root() -> Path:
    """Return the folder of shipped recipes, in the wheel or in the source tree."""
    package = Path(smallvit.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped() -> Iterator[str]:
    """Yield the names of shipped recipes, such as ``cifar10/cpu-demo``."""
    root = recipes_root()
    for path in sorted(root.rglob("*.yaml")):
        if path.parent != root / "suites":  # recipes of benchmarks, which `smallvit bench` reads
            yield path.relative_to(root).with_suffix("").as_posix()


def find_recipe(name: str) -> Path:
    """Find a recipe by shipped name or by file.

    Raises:
        ConfigError: If there is neither.
    """
    for path in (recipes_root() / f"{name}.yaml", Path(name)):
        with suppress(OSError):  # longer than a name of a file can be
            if path.is_file():
                return path
    near = suggest(name, shipped(), listing=LISTINGS["recipe"])
    raise ConfigError(f"no recipe {name!r}, neither shipped nor a file{near}")


class _StrictLoader(yaml.SafeLoader):
    """Refuses what a recipe has no use for.

    A key that stands twice, of which YAML takes the last in silence; a key that is no text; and an
    alias, by which a few lines can stand for more values than any memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                problem="an alias (*) is not read: write the value out",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key not in seen:
                seen.add(key)
                continue
            why = "stands twice" if isinstance(key, str) else "is no text: put it in quotes"
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key!r} {why}", problem_mark=key_node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_layer(path: Path) -> Layer:
    """Read a recipe file as one layer of settings; its relative paths start at its folder.

    Raises:
        ConfigError: If it is no YAML mapping.
    """
    unread = (OSError, UnicodeDecodeError)
    with explained(lambda error: f"{path} cannot be read: {error}", *unread, into=ConfigError):
        text = path.read_text(encoding="utf-8")
    # PyYAML raises nearly anything on a value that its tag does not fit.
    with explained(
        lambda error: f"{path}: no valid YAML: {reason(error)}", Exception, into=ConfigError
    ):
        values = yaml.load(text, _StrictLoader)  # a SafeLoader
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, got {show(values)}")
    if path.name == "recipe.yaml" and (path.parent / "result.json").is_file():
        values = name_version(values)  # a run's
    return Layer(
        source=str(path), values=with_absolute_paths(values, path.parent, named=f"{path}: ")
    )


def with_absolute_paths(
    values: Mapping[str, Any], folder: Path = Path(), prefix: str = "", *, named: str = ""
) -> dict[str, Any]:
    """Make the paths of settings absolute: the runs made with them must run again from any folder.

    Args:
        values: Nested settings.
        folder: Where relative paths start: of a file its own folder, else the working directory.
        prefix: Section that ``values`` are, with a dot.
        named: What messages begin with.

    Raises:
        ConfigError: If a path is empty or no file can have it.
    """
    plain: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            plain[key] = with_absolute_paths(value, folder, f"{name}.", named=named)
        elif name in PATHS and isinstance(value, str | Path) and not is_init_name(str(value)):
            plain[key] = str(place(folder, f"{named}{name}", str(value)))
        else:
            plain[key] = value
    return plain


def is_init_name(init: str) -> bool:
    """Tell whether weights to begin with are a name, and no path."""
    return init == "scratch" or init.startswith("timm:")


def place(folder: Path, key: str, value: str) -> Path:
    """Return the path that a key of a file of settings names, absolute, from the file's folder.

    Raises:
        ConfigError: If it is empty or no file can have it.
    """
    if not value.strip():
        raise ConfigError(f"{key} is empty: name a path, or leave it out")
    with explained(  # too long, or below the home of nobody
        lambda error: (
            f"{key}: no path can be {show(value)} ({getattr(error, 'strerror', None) or error})"
        ),
        OSError,
        RuntimeError,
        into=ConfigError,
    ):
        path = places.absolute(folder / Path(value).expanduser())
        path.exists()
    return path


def load_recipe(
    name: str | None,
    overrides: Mapping[str, Any],
    *,
    source: str = "command line",
    same_data: bool = False,
) -> tuple[Recipe, str]:
    """Resolve a recipe: defaults, then the file, then overrides.

    Args:
        name: Shipped name or file; ``None`` takes the recipe for the dataset and model that
            ``overrides`` name, else the generic one nearest in image size.
        overrides: Nested settings that win.
        source: What to call them in messages.
        same_data: Whether data that ``overrides`` name are those of the file in another place, of
            which all stays that the file says of them.

    Returns:
        The recipe and the name or path of its file.

    Raises:
        ConfigError: On the first thing that is wrong.
    """
    over = Layer(source=source, values=overrides)
    # Without a name, the data and model asked for decide which recipe is meant.
    path = find_recipe(name) if name is not None else _matching(resolve(Recipe, [over]))
    layer = read_layer(path)
    values = _for_named_network(layer.values, overrides)
    data, given = values.get("data"), overrides.get("data") or {}
    named = given.get("path") is not None or given.get("dataset") is not None
    if named and isinstance(data, Mapping):
        # Naming data replaces the recipe's, whichever way it was named, and what is said of it.
        replaced = ("dataset", "path") if same_data else OF_NAMED_DATA
        values["data"] = {key: value for key, value in data.items() if key not in replaced}
    layer = Layer(source=layer.source, values=values)
    label, root, whole = str(path), recipes_root().resolve(), path.resolve()
    if whole.is_relative_to(root):
        label = whole.relative_to(root).with_suffix("").as_posix()
    return resolve(Recipe, [layer, over]), label


def say_fit(recipe: Recipe, name: str) -> None:
    """Say where a recipe that is made for a GPU is used without one, and which is for a CPU."""
    from smallvit.engine.runtime import uses_cuda  # late, as below: help is to be quick

    if recipe.cpu_recipe is not None and not uses_cuda(recipe.runtime):
        logger.warning(
            "%s is made for a GPU, and none is used here: %s is the recipe for a CPU",
            name,
            recipe.cpu_recipe,
        )


def _for_named_network(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the settings of models and of the method where others are named: they are not for them.

    Raises:
        UnknownNameError: If there is no method of that name.
    """
    values = dict(values)
    for section, key in (("", "model"), ("teacher", "model"), ("pretrain", "method")):
        ours, new = (section_of(section_of(each, section), key) for each in (values, overrides))
        name, method = new.get("name"), key == "method"
        if not ours or name in (None, ours.get("name", DinoConfig().name if method else None)):
            continue
        if method:
            get_method(name)
        replaced = {key: {"name": name}}
        values |= {section: {**values[section], **replaced}} if section else replaced
    return values


def section_of(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of settings, or all where no name is given; empty where it is none."""
    section = values.get(name) if name else values
    return section if isinstance(section, Mapping) else {}


def stage_values(recipe: Recipe | SegmentRecipe, stage: AnyStage) -> dict[str, Any]:
    """Return the plain settings that one stage's run depends on, as its recipe.yaml has them."""
    if isinstance(recipe, SegmentRecipe):
        return to_plain(recipe)
    keys = [key for key in SHARED if not (key == "model" and stage in ("teacher", "label"))]
    plain = {key: to_plain(getattr(recipe, key)) for key in keys}
    return {**plain, stage: to_plain(getattr(recipe, stage))}


def run_values(run: Run, stage: AnyStage) -> dict[str, Any]:
    """Return a run's settings; keys that its version did not know have their defaults.

    Raises:
        ConfigError: If its recipe.yaml is not one that this version reads.
    """
    layer = Layer(source=str(run.path / "recipe.yaml"), values=run.recipe)
    return stage_values(resolve(SegmentRecipe if stage == "segment" else Recipe, [layer]), stage)


def open_unfinished(folder: Path, stage: str) -> Run:
    """Return the run that ``--resume`` names.

    A complete run whose export or maps are gone is gone on with too: that writes them again.

    Raises:
        ConfigError: If it is none, is complete or of another stage.
        DataError: If it is broken.
    """
    named = f"--resume {folder}"
    if not (folder / "result.json").is_file():
        raise ConfigError(f"{named}: no run there, it {what_is_at(folder)}")
    run = Run(folder)
    if not {"stage", "status"} <= run.result.keys():
        raise DataError(f"{folder}/result.json is broken: repeat the run")
    if not (folder / "recipe.yaml").is_file():
        raise DataError(f"{named}: its recipe.yaml is gone: put it back, or repeat the run")
    own = run.result["stage"]
    if own != stage:
        raise ConfigError(
            f"{named}: that is a {own} run, not {stage}: smallvit {own} {named} continues it"
        )
    if run.completed:
        _refuse_complete(run, named)
    return run


def _refuse_complete(run: Run, named: str) -> None:
    """Refuse to go on with a run that is complete, unless what it made is gone.

    Raises:
        ConfigError: Saying what a longer run starts from.
        DataError: If what it made is gone, and all that it could be made again from.
    """
    stage, path = run.result["stage"], run.path
    again = stage == "label" or "adopted" in run.result
    made = path / ("score_maps.safetensors" if stage == "label" else "export/model.safetensors")
    if made.is_file() and (stage == "label" or (path / "export" / "config.json").is_file()):
        longer = {
            "label": f"its maps are {made}",
            "teacher": "train a longer one anew, with more --epochs",
        }.get(stage, f"--init {path} starts a new run from its weights")
        raise ConfigError(f"{named}: that run is complete: {longer}")
    if not again and not any((path / "checkpoints").glob("*.pt")):
        raise DataError(
            f"{named}: that run is complete, but its {made.relative_to(path).parts[0]} and its "
            f"checkpoints are gone: repeat it with --recipe {path / 'recipe.yaml'}"
        )


def refuse_changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings than its own.

    Raises:
        ConfigError: Naming the first few that differ.
    """
    if changed := list_changes(old, new, but=FREE_AT_RESUME):
        raise ConfigError(
            f"--resume {folder} continues the same run, but these settings differ: {changed}: "
            "leave them out, or start a new run"
        )


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, but: Sequence[str]) -> str:
    """Return the first few settings that differ, as text; those of ``but`` may."""
    free = tuple(f"{key}:" for key in but)
    changed = [change for change in differences(old, new) if not change.startswith(free)]
    return "; ".join(changed[:5])


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some settings replaced."""
    plain = to_plain(recipe)
    return resolve(Recipe, [Layer(source="recipe", values=merge(plain, values))])


def check_recipe(path: Path) -> list[str]:
    """Resolve a recipe and build its networks; return every error, a line each."""
    from smallvit.models.registry import create_backbone

    try:
        layer = read_layer(path)
    except ConfigError as error:
        return [str(error)]
    if errors := find_errors(Recipe, [layer]):
        return errors
    recipe = resolve(Recipe, [layer])
    spec = DATASETS.get(recipe.data.dataset or "")
    sizes = {
        "num_classes": spec.num_classes if spec else 10,
        "image_size": recipe.data.image_size or (spec.image_size if spec else 32),
    }
    for section, model in (("model", recipe.model), ("teacher.model", recipe.teacher.model)):
        try:
            create_backbone(model, **sizes)
        except ConfigError as error:
            errors.append(f"{path}: {section}: {error}")
    return errors


def differences(left: Any, right: Any, prefix: str = "") -> Sequence[str]:
    """List the settings in which two plain configs differ, as ``key: left -> right``."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found: list[str] = []
        for key in sorted(left.keys() | right.keys()):
            found += differences(left.get(key), right.get(key), f"{prefix}{key}.")
        return found
    return [] if left == right else [f"{prefix.rstrip('.')}: {left} -> {right}"]


def _matching(asked: Recipe) -> Path:
    from smallvit.runs.data import find_image_size

    root = recipes_root()
    dataset, method = asked.data.dataset, asked.pretrain.method.name
    suffix = "" if method == DinoConfig().name else f"-{method}"
    if dataset is not None:
        for name in (asked.model.name, asked.model.name.replace("_", "-")):
            own = root / dataset / f"{name}{suffix}.yaml"
            if own.is_file():
                return own
    if asked.data.path is None and dataset is None:
        raise ConfigError(
            "no data named: give --dataset NAME (`smallvit data ls` lists them), --data PATH or "
            "--recipe NAME"
        )
    known = DATASETS.get(dataset or "")
    size = asked.data.image_size or (known.image_size if known else find_image_size(asked.data))
    ending = f"px{suffix}.yaml"
    sizes = {int(p.name.removesuffix(ending)): p for p in (root / "generic").glob(f"*{ending}")}
    return sizes[min(sizes, key=lambda side: (abs(side - size), side))]
