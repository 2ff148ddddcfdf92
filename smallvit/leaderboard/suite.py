"""Suites: every combination of data, model, init, token labels, share of the labels and seed.

A suite is one YAML file. A cell is one combination: one fine-tuned run. Cells share what they build
on: stage 1 of a data set, model, method and seed; the teacher and its score maps of a data set,
label fraction and seed.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from smallvit.core import places
from smallvit.core.config import Range, flatten, merge, nest, resolve, show, to_plain
from smallvit.core.errors import ConfigError, DataError, suggest
from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import Run
from smallvit.data.files.registry import DATASETS
from smallvit.leaderboard.settings import VARIED
from smallvit.models.registry import check_model
from smallvit.pretraining.config import METHODS
from smallvit.runs.chain import arm_recipe, refuse_other_settings
from smallvit.runs.config import PretrainConfig, Recipe, Stage
from smallvit.runs.data import load_dataset
from smallvit.runs.label import SCORE_MAPS
from smallvit.runs.recipe import (
    differences,
    load_recipe,
    place,
    read_layer,
    recipes_root,
    with_absolute_paths,
)

SCRATCH = "scratch"
SHIPPED = "suites"  # folder of the shipped ones, below the recipes
AXES = ("datasets", "models", "inits", "token_label", "fractions", "seeds")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What a suite file says.

    Attributes:
        description: What it is for, in one line.
        paper: What it follows.
        expected: What was measured with it, in one line; null until it was.
        datasets: Names of data sets, or folders, from the suite's own.
        models: Names of models.
        inits: What stage 2 begins with: ``scratch``, or methods of stage 1.
        token_label: Whether patch tokens are supervised.
        fractions: Parts of the labels, in (0, 1]; stage 1 sees all images, without labels.
        seeds: Seeds of all stages; the splits have their own.
        recipe: Recipe of every cell; null is the one that ships for its data set and model.
        settings: Settings of a recipe that count for every cell.
        bench: Settings of the leaderboard.
    """

    description: str = ""
    paper: str | None = None
    expected: str | None = None
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ("vit_tiny",)
    inits: tuple[str, ...] = (SCRATCH,)
    token_label: tuple[bool, ...] = (False,)
    fractions: Annotated[tuple[float, ...], Range(gt=0, le=1)] = (1.0,)
    seeds: Annotated[tuple[int, ...], Range(ge=0)] = (0,)
    recipe: str | None = None
    settings: dict = field(default_factory=dict)
    bench: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for axis in AXES:
            values = getattr(self, axis)
            if not values:
                raise ConfigError(f"{axis} is empty: list at least one")
            for value, count in Counter(values).items():
                if count > 1:
                    raise ConfigError(f"{axis}: {value!r} is listed {count} times: once is enough")
        known = (SCRATCH, *METHODS)
        for init in self.inits:
            if init not in known:
                raise ConfigError(f"inits: cannot be {init!r}{suggest(init, known)}")
        for model in self.models:
            try:
                check_model(ModelConfig(name=model))
            except ConfigError as error:
                raise ConfigError(f"models: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite that was read.

    Attributes:
        name: Shipped name, or that of its file.
        path: Its file.
        config: What it says; folders of images and its recipe's file are absolute.
    """

    name: str
    path: Path
    config: SuiteConfig


@dataclass(frozen=True, kw_only=True)
class Node:
    """One run of a suite.

    Attributes:
        name: Its folder, below the suite's.
        stage: Its stage.
        recipe: Its settings, with the folders of the runs that it builds on.
        needs: Names of those runs.
    """

    name: str
    stage: Stage
    recipe: Recipe
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every run of a suite in an order in which they can be made.

    Attributes:
        suite: The suite.
        folder: Where its runs lie.
        nodes: Runs by name, each after those that it needs.
        cells: Names of the fine-tuned runs that are asked for, in order.
        faults: What keeps a cell from being planned at all, by its name.
    """

    suite: Suite
    folder: Path
    nodes: Mapping[str, Node]
    cells: tuple[str, ...]
    faults: Mapping[str, str]

    def run(self, name: str) -> Run:
        """Return the run of a node, made or not."""
        return Run(self.folder / name)

    def done(self, name: str) -> bool:
        """Tell whether a run is finished."""
        return name in self.nodes and self.run(name).completed

    def notes(self) -> list[str]:
        """Say of the cells what their figures do not."""
        config = self.suite.config
        notes = []
        if set(config.inits) - {SCRATCH} and min(config.fractions) < 1:
            notes.append(
                "label fractions: an SSL start saw all training images without their labels, a "
                "start from scratch the labelled ones alone"
            )
        return notes


def shipped_suites() -> list[str]:
    """List the names of shipped suites."""
    return sorted(path.stem for path in (recipes_root() / SHIPPED).glob("*.yaml"))


def find_suite(name: str) -> Path | None:
    """Return the file of a shipped suite or of one's own; ``None`` where there is neither."""
    for path in (recipes_root() / SHIPPED / f"{name}.yaml", Path(name)):
        with suppress(OSError):  # longer than a name of a file can be
            if path.is_file():
                return path
    return None


def read_suite(name: str) -> Suite:
    """Read a suite strictly.

    Args:
        name: Shipped name, or a file.

    Raises:
        ConfigError: If there is none, or on the first thing that is wrong with it.
    """
    path = find_suite(name)
    if path is None:
        raise ConfigError(
            f"no suite {name!r}, neither shipped nor a file{suggest(name, shipped_suites())}"
        )
    layer = read_layer(path)
    for key in ("settings", "bench"):
        if not isinstance(layer.values.get(key, {}), Mapping):
            raise ConfigError(f"{path}: {key}: must be a mapping, got {layer.values[key]!r}")
    config = resolve(SuiteConfig, [layer])
    datasets = tuple(_place_data(path, name) for name in config.datasets)
    slugs = Counter(_slug(dataset) for dataset in datasets)
    for slug, count in slugs.items():
        if count > 1:
            raise ConfigError(f"{path}: datasets: {count} are called {slug!r}: rename a folder")
    for key, value in flatten(config.settings):
        if key in VARIED and value is not None:
            raise ConfigError(
                f"{path}: settings.{key} ({value!r}) is what the cells differ in: give it as "
                f"{VARIED[key]}"
            )
    recipe = config.recipe
    try:
        if recipe is not None and (beside := place(path.parent, "recipe", recipe)).is_file():
            recipe = str(beside)
        settings = with_absolute_paths(config.settings, path.parent)
        bench = _place_images(config.bench, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    config = replace(config, datasets=datasets, recipe=recipe, settings=settings, bench=bench)
    return Suite(name=path.stem, path=path, config=config)


def plan_suite(suite: Suite, folder: Path | None = None) -> Plan:
    """Resolve the settings of every run of a suite, and compare them with the runs there are.

    Args:
        suite: The suite.
        folder: Where its runs lie; ``None`` is ``suites/NAME`` in the runs folder, so that a second
            call goes on where the first was.

    Raises:
        ConfigError: If a setting is wrong, cells of one data set are not comparable, or a run there
            was made with other settings.
    """
    config = suite.config
    root = places.absolute(folder or places.runs_dir() / "suites" / suite.name)
    nodes: dict[str, Node] = {}
    cells, faults = [], {}
    recipes = _load_recipes(suite)
    # Seeds outermost: the whole table stands after the first of them.
    for seed, dataset, model, fraction, init, token_label in itertools.product(
        config.seeds,
        config.datasets,
        config.models,
        config.fractions,
        config.inits,
        config.token_label,
    ):
        parts = (_slug(dataset), model, init, *(["tl"] if token_label else []))
        cell = f"finetune/{'-'.join(parts)}-f{fraction:g}-s{seed}"
        cells.append(cell)
        of_inits = recipes[dataset, model]
        if isinstance(of_inits, DataError):
            faults[cell] = str(of_inits)
            continue
        base = of_inits[SCRATCH]
        base = replace(base, seed=seed, data=replace(base.data, label_fraction=fraction))
        section = None if init == SCRATCH else of_inits[init].pretrain
        for node in _plan_cell(root, cell, _slug(dataset), base, section, token_label=token_label):
            nodes.setdefault(node.name, node)
    for node in nodes.values():
        refuse_other_settings(node.recipe, node.stage, root / node.name)
    return Plan(suite=suite, folder=root, nodes=nodes, cells=tuple(cells), faults=faults)


def _plan_cell(
    root: Path,
    name: str,
    dataset: str,
    base: Recipe,
    section: PretrainConfig | None,
    *,
    token_label: bool,
) -> list[Node]:
    """Return the runs of a cell, each after those that it needs, its own last.

    Args:
        root: Folder of the suite.
        name: Of the cell.
        dataset: What the names of its runs call its data set.
        base: Its settings, with its seed and its share of the labels.
        section: Settings of stage 1; ``None`` is from scratch.
        token_label: Whether patch tokens are supervised.
    """
    first = []
    if section is not None:
        # The same run for every share of the labels: it sees all images without them.
        recipe = replace(base, data=replace(base.data, label_fraction=1.0), pretrain=section)
        pretrained = f"pretrain/{dataset}-{base.model.name}-{section.method.name}-s{base.seed}"
        first = [Node(name=pretrained, stage="pretrain", recipe=recipe)]
    labels = f"{dataset}-f{base.data.label_fraction:g}-s{base.seed}"
    teacher = Node(name=f"teacher/{labels}", stage="teacher", recipe=base)
    recipe = replace(base, label=replace(base.label, teacher=root / teacher.name))
    label = Node(name=f"label/{labels}", stage="label", recipe=recipe, needs=(teacher.name,))
    recipe = arm_recipe(
        base,
        pretrained=root / first[0].name if first else None,
        token_label=token_label,
        teacher=root / teacher.name,
        score_maps=root / label.name / SCORE_MAPS,
    )
    annotators = {"online": [teacher], "stored": [teacher, label]}
    source = base.finetune.token_label.source
    then = annotators.get(source, []) if token_label else []
    needs = tuple(node.name for node in (*first, *then[-1:]))
    return [*first, *then, Node(name=name, stage="finetune", recipe=recipe, needs=needs)]


def _load_recipes(suite: Suite) -> dict[tuple[str, str], dict[str, Recipe] | DataError]:
    """Resolve the recipes of each data set and model, by init; or why its data cannot be had."""
    recipes: dict[tuple[str, str], dict[str, Recipe] | DataError] = {}
    for dataset in suite.config.datasets:
        for model in suite.config.models:
            try:
                recipes[dataset, model] = _load(suite, dataset, model)
            except DataError as error:  # of this data set alone: the others are for its cells
                recipes[dataset, model] = error
        found = {model: recipes[dataset, model] for model in suite.config.models}
        bases = {m: each[SCRATCH] for m, each in found.items() if isinstance(each, dict)}
        _check_comparable(suite, dataset, bases)
    return recipes


def passes_of(node: Node) -> float:
    """Return how often a run sees its images; adopting a teacher counts as none."""
    recipe = node.recipe
    passes = {
        "pretrain": recipe.pretrain.schedule.epochs,
        "teacher": 0.0 if recipe.teacher.adopt else recipe.teacher.schedule.epochs,
        "label": 1.0,
        "finetune": recipe.finetune.schedule.epochs,
    }
    return passes[node.stage]


def samples_of(node: Node) -> float | None:
    """Return about how many images a run sees, repeats counted; nothing is downloaded for it.

    Returns:
        The number; ``None`` where the images have to be fetched or cannot be read.
    """
    data = node.recipe.data
    fraction = 1.0 if node.stage == "pretrain" else data.label_fraction
    spec = DATASETS.get(data.dataset or "")
    if spec is not None:
        images = spec.num_train * (1 if spec.num_test else 1 - data.test_fraction)
        images *= 1 if spec.num_val else 1 - data.val_fraction
    elif data.path is not None:
        try:
            images = len(load_dataset(data).splits["train"])
        except DataError:
            return None
    else:
        return None
    return passes_of(node) * images * fraction


def _load(suite: Suite, dataset: str, model: str) -> dict[str, Recipe]:
    """Resolve the recipes of one data set and model by init, that of scratch first.

    With a method the recipe is the one of that method, of which stage 1 alone is used.
    """
    config = suite.config
    key = "data.path" if Path(dataset).is_absolute() else "data.dataset"
    own = {key: dataset, "model.name": model, "data.label_fraction": 1.0}
    recipes = {}
    for init in dict.fromkeys((SCRATCH, *config.inits)):
        settings = config.settings
        if init != SCRATCH:
            own["pretrain.method.name"] = init
            settings = {key: settings[key] for key in ("data", "pretrain") if key in settings}
        elif set(config.inits) != {SCRATCH}:
            # They may be of a method that this recipe does not have.
            settings = {key: value for key, value in settings.items() if key != "pretrain"}
        values, source = merge(settings, nest(own)), f"{suite.path}: settings"
        recipes[init], _ = load_recipe(config.recipe, values, source=source)
    return recipes


def _check_comparable(suite: Suite, dataset: str, recipes: Mapping[str, Recipe]) -> None:
    """Refuse models whose recipes differ in what the cells of a data set must have in common."""
    (first, *others) = recipes.items() if recipes else [("", None)]
    shared = ["data", "finetune.schedule.epochs"]
    if True in suite.config.token_label:
        shared += ["teacher", "label", "finetune.token_label.source"]
    for model, recipe in others:
        for key in shared:
            left, right = (to_plain(attrgetter(key)(each)) for each in (first[1], recipe))
            changed = differences(left, right, f"{key}.")
            if changed:
                raise ConfigError(
                    f"{suite.path}: on {_slug(dataset)} the recipes of {first[0]} and {model} "
                    f"differ in {changed[0]}: give it in settings, or one recipe for all"
                )


def _place_data(path: Path, dataset: str) -> str:
    """Return the name of a data set as it is, and a folder as an absolute path."""
    if dataset in DATASETS or dataset.startswith("hf:"):
        return dataset
    folder = None
    with suppress(ConfigError):
        folder = place(path.parent, "datasets", dataset)
    if folder is None or not folder.exists():
        raise ConfigError(
            f"{path}: datasets: no data set and no folder is called {show(dataset)}"
            f"{suggest(dataset, DATASETS)}"
        )
    return str(folder)


def _place_images(bench: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings of the leaderboard with folders of images as absolute paths."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(key, each) for each in value]
        if key not in ("archive", "ood") or not isinstance(value, str) or value.startswith("hf:"):
            return value
        beside = place(folder, f"bench.{key}", value)
        return str(beside) if beside.exists() or "/" in value else value

    return {key: absolute(key, value) for key, value in bench.items()}


def _slug(dataset: str) -> str:
    """Return the part of a run's name that says its data set."""
    name = Path(dataset).name if Path(dataset).is_absolute() else dataset
    return re.sub(r"[^\w.]+", "-", name)
