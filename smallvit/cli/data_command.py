"""``smallvit data``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

from smallvit.cli.options import Given, GivenOptions, Json, Switch
from smallvit.cli.tables import print_rows, print_text
from smallvit.core import places
from smallvit.core.config import Layer, merge, resolve
from smallvit.core.console import say
from smallvit.core.errors import ConfigError, DataError, UnknownNameError, explained
from smallvit.data.files import fetch
from smallvit.data.files.config import DataConfig
from smallvit.data.files.registry import DATASETS, DatasetSpec
from smallvit.data.files.walk import is_drawn
from smallvit.runs.options import to_settings
from smallvit.runs.recipe import load_recipe

if TYPE_CHECKING:
    from smallvit.data.dataset import Dataset

MOST_CLASSES = 30  # rows of a table
MOST_DRAWN = 512
SHEETS = ("images", "views", "batch", "score_maps")
data_command = App(
    name="data",
    help="List, describe, fetch, check or draw data sets and images of your own.",
    result_action="return_value",
)


@data_command.command
def ls(*, as_json: Json = False) -> None:
    """List the data sets known by name, and whether their files are here.

    Args:
        as_json: Print every fact as JSON.
    """
    if as_json:
        Console().print_json(json.dumps([_plain(spec) for spec in DATASETS.values()]))
        return
    rows = []
    for spec in DATASETS.values():
        nums = (spec.num_train, spec.num_val, spec.num_test)
        counts = "/".join(f"{num:,}" if num else "cut" for num in nums)
        megabytes = "" if (size := _size(spec)) is None else f"{size / 1e6:,.0f}"
        facts = (spec.name, spec.num_classes, counts, spec.image_size, megabytes, _status(spec))
        rows.append([*map(str, facts), spec.license])
    # With lines it would not fit 100 columns.
    looks = {"box": None, "padding": (0, 2, 0, 0)}
    headings = ("name", "classes", "train/val/test", "px", "MB", "status", "licence")
    print_rows(headings, rows, wrap=("licence",), **looks)
    print_text(
        "\nabsent: `smallvit data get NAME` fetches it. cut: that split is cut from train. Images "
        "of your own work too: `smallvit data info PATH`, for a folder with one folder a class, a "
        "CSV, a parquet file or an .npz file of arrays."
    )


@data_command.command
def info(
    name: str,
    /,
    *,
    all_classes: Annotated[bool, Parameter(name="--all", negative="")] = False,
    given: GivenOptions,
    data: DataConfig = DataConfig(),
) -> None:
    """Describe a dataset: source, splits, classes, channel statistics. Nothing is downloaded.

    Args:
        name: A known name, ``hf:owner/name@commit``, a folder, CSV, parquet or .npz file.
        all_classes: List every class.
        given: What of these was given.
        data: Size and splits.
    """
    from smallvit.runs.data import open_here, pack

    config, recipe = _config(name, given)
    spec = DATASETS.get(config.dataset or "")
    if spec is not None and not fetch.is_present(spec, places.data_dir()):
        _print_facts(spec.name, _registry_facts(spec))
        _print_files(spec)
    dataset = pack(open_here(config), config)
    facts = {
        "classes": str(dataset.num_classes) if dataset.labelled else "none: images without labels",
        "image size": f"{dataset.image_size} px, as recipe {recipe} trains on them",
        "grey values": dataset.grey or "8 bits",
        "mean (train)": ", ".join(f"{value:.4f}" for value in dataset.mean),
        "std (train)": ", ".join(f"{value:.4f}" for value in dataset.std),
        "horizontal flip": "on" if dataset.hflip else "off",
        "files left out": str(len(dataset.broken)),
        "fingerprint": dataset.fingerprint[:16],
        "packed in": str(dataset.store_path),
    }
    if dataset.kind:
        facts = {"read as": dataset.kind} | facts
    if config.path is not None:
        facts |= {"cite": "your own images", "licence": "yours"}
    _print_facts(dataset.name, facts if spec is None else _registry_facts(spec) | facts)
    if spec is not None:
        _print_files(spec)
    _print_counts(dataset, len(dataset.class_names) if all_classes else MOST_CLASSES)
    for broken in dataset.broken:
        print_text(f"left out: {broken}")
    for note in (*dataset.left_out, *dataset.notes):
        print_text(f"note: {note}")


@data_command.command
def get(
    name: str,
    /,
    *,
    origin: Annotated[Path | None, Parameter(name="--from")] = None,
    offline: Switch = False,
    given: GivenOptions,
    data: DataConfig = DataConfig(),
) -> None:
    """Fetch a dataset, verify it and pack it; images of your own are only packed.

    Args:
        name: A known name, ``hf:owner/name@commit``, a folder, CSV, parquet or .npz file.
        origin: Official archive, a folder of them, or the unpacked data, instead of a download.
        offline: Download nothing.
        given: What of these was given.
        data: Size and splits.
    """
    from smallvit.runs.data import load_dataset, show_progress
    from smallvit.runs.data_check import packed_counts, start_again

    config, _ = _config(name, given, here=False)
    spec = DATASETS.get(config.dataset or "")
    if spec is None and origin is not None:
        raise ConfigError(f"--from is for data sets known by name, not for {name}: leave it out")
    was_here = spec is not None and fetch.is_present(spec, places.data_dir())
    if spec is not None:
        with show_progress() as (_, fetch_progress):
            fetch.fetch_dataset(
                spec,
                places.data_dir(),
                origin=origin,
                offline=places.offline(),
                progress=fetch_progress,
            )
    dataset = load_dataset(config)
    if spec is not None:
        print_text(f"{spec.name}: {_origin(spec, was_here)}")
    counts = packed_counts(dataset)
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    classes = f"{dataset.num_classes} classes" if dataset.labelled else "no labels"
    print_text(f"packed: {images} images, {classes}, {dataset.image_size} px")
    for kind in ("mean", "std"):
        values = ", ".join(f"{value:.4f}" for value in getattr(dataset, kind))
        print_text(f"{kind} of the training split: {values}")
    print_text(f"packed in {dataset.store_path}")
    if spec is not None and dataset.broken:
        raise DataError(
            f"{spec.name}: images that cannot be decoded: {len(dataset.broken)}, first: "
            f"{dataset.broken[0]}: {start_again(spec)}"
        )


@data_command.command
def check(name: str, /, *, given: GivenOptions, data: DataConfig = DataConfig()) -> None:
    """Verify a dataset: archives, counts, every image, packed pixels, labels and splits.

    Nothing is downloaded. Exit code 3 if anything is wrong.

    Args:
        name: A known name, ``hf:owner/name@commit``, a folder, CSV, parquet or .npz file.
        given: What of these was given.
        data: Size and splits.
    """
    from smallvit.runs.data_check import check_dataset

    problems = 0
    for finding in check_dataset(_config(name, given)[0]):
        problems += finding.kind == "wrong"
        print_text(f"{finding.kind:<6} {finding.text}")
    if problems:
        raise DataError(f"{name}: {problems} problem{'s' if problems > 1 else ''}, named above")
    print_text(f"{name}: fine")


@data_command.command
def show(
    name: str,
    /,
    *,
    out: Path | None = None,
    score_maps: Annotated[Path | None, Parameter(name="--score-maps")] = None,
    num: int = 32,
    seed: int | None = None,
    recipe: str | None = None,
    offline: Switch = False,
    given: GivenOptions,
    data: DataConfig = DataConfig(),
) -> None:
    """Draw what training sees: images, views of stage 1, a batch of stage 2, score maps.

    Args:
        name: A known name, ``hf:owner/name@commit``, a folder, CSV, parquet or .npz file.
        out: Folder of the pictures, by default contact-sheets/NAME; older ones are replaced.
        score_maps: File of score maps, to draw over the crops that they belong to.
        num: Images a picture, at most.
        seed: Seed of the run whose first images are drawn; by default the recipe's.
        recipe: Shipped recipe or file whose augmentation is drawn; by default the one for the
            dataset.
        offline: Download nothing.
        given: What of these was given.
        data: Size and splits.
    """
    from smallvit.data import contact_sheet  # matplotlib takes a second
    from smallvit.data.files.store import file_stem
    from smallvit.models.registry import create_backbone
    from smallvit.runs.data import load_dataset, require_labels
    from smallvit.teachers.score_maps import open_score_maps

    if not 1 <= num <= MOST_DRAWN:
        raise ConfigError(f"--num must be from 1 to {MOST_DRAWN}, got {num}")
    settings = merge(to_settings(given.options, "finetune"), {"data": _which(name)})
    resolved, recipe_name = load_recipe(recipe, settings)
    say(f"recipe: {recipe_name}")
    dataset = load_dataset(resolved.data)
    run = {"num": num, "seed": resolved.seed, "recipe": recipe_name}
    stage_1, stage_2 = resolved.pretrain.method.views, resolved.finetune.augment
    sheets: dict[str, Callable[[Path], object]] = {
        "images": lambda path: contact_sheet.draw_images(
            path, dataset, num=num, seed=resolved.seed
        ),
        "views": lambda path: contact_sheet.draw_views(path, dataset, stage_1, **run),
    }
    if dataset.labelled:
        sheets["batch"] = lambda path: contact_sheet.draw_batch(path, dataset, stage_2, **run)
    if score_maps is not None:
        require_labels(dataset, "--score-maps")
        maps, header = open_score_maps(score_maps, dataset)
        backbone = create_backbone(
            resolved.model, num_classes=dataset.num_classes, image_size=dataset.image_size
        )
        reader = {"score_maps": maps.dense, "teacher": header.teacher}
        reader["grid"] = backbone.grid(dataset.image_size)
        sheets["score_maps"] = lambda path: contact_sheet.draw_score_maps(
            path, dataset, stage_2, **reader, **run
        )
    folder = out or Path("contact-sheets") / file_stem(dataset.name)
    with explained(
        lambda e: f"cannot write {e.filename or folder} ({e.strerror}): give another --out",
        into=ConfigError,
    ):
        for taken in filter(Path.exists, (folder / f"{stem}.png" for stem in SHEETS)):
            if not is_drawn(taken):
                raise ConfigError(f"{taken} is no contact sheet: give another --out")
        folder.mkdir(parents=True, exist_ok=True)
        for stem, draw in sheets.items():
            draw(folder / f"{stem}.png")
    if not dataset.labelled:
        print_text("no labels: a batch of stage 2 cannot be drawn")
    for stem in sheets:
        print_text(str(folder / f"{stem}.png"))


def _which(name: str) -> dict[str, str]:
    """Return the setting that a name or path on the command line stands for."""
    if name in DATASETS or name.startswith("hf:"):
        return {"dataset": name}
    # A word that is no path is most likely a name with a slip in it.
    if Path(name).exists() or "/" in name or Path(name).suffix:
        return {"path": str(places.absolute(name))}
    unknown = UnknownNameError("dataset", name, DATASETS)
    raise ConfigError(f"{unknown}; no file or folder here is called {name} either")


def _config(name: str, given: Given, *, here: bool = True) -> tuple[DataConfig, str]:
    """Return the settings of the data that training takes of it, and the recipe that says so.

    Packed otherwise, the images would be described and checked at a size that nothing trains on,
    and packed again for training.

    Args:
        name: What the command line names.
        given: Its options.
        here: Whether images that are not on this machine are left there.
    """
    from smallvit.runs.data import open_here

    settings = {**to_settings(given.options).get("data", {}), **_which(name)}
    config = resolve(DataConfig, [Layer(source="command line", values=settings)])
    if here and name.startswith("hf:"):
        open_here(config)  # or else the choice of a recipe would fetch it
    try:
        recipe, recipe_name = load_recipe(None, {"data": settings})
    except DataError:  # said again, and better, by what reads the images
        return config, ""
    return recipe.data, recipe_name


def _status(spec: DatasetSpec) -> str:
    if not fetch.targets(spec):
        return "built in"
    return "here" if fetch.is_present(spec, places.data_dir()) else "absent"


def _origin(spec: DatasetSpec, was_here: bool) -> str:
    """Say where a dataset lies and what was verified."""
    folder = places.data_dir()
    if not fetch.targets(spec):
        return "comes with scikit-learn; nothing to fetch"
    if was_here:
        return f"was in {folder} already; `smallvit data check {spec.name}` verifies it"
    verified = [file.name for file in spec.files if (folder / file.name).exists()]
    if not verified:
        return f"in {folder}; no md5 was verified"
    return f"in {folder}; length and md5 verified: {', '.join(verified)}"


def _size(spec: DatasetSpec) -> int | None:
    sizes = [file.size for file in spec.files if file.size is not None]
    return sum(sizes) if spec.files and len(sizes) == len(spec.files) else None


def _plain(spec: DatasetSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "classes": spec.num_classes,
        "train": spec.num_train,
        "val": spec.num_val,
        "test": spec.num_test,
        "image_size": spec.image_size,
        "download_bytes": _size(spec),
        "status": _status(spec),
        "licence": spec.license,
        "page": spec.page,
        "cite": spec.citation,
        "files": [{"name": file.name, "md5": file.md5, "urls": file.urls} for file in spec.files],
        "hub": spec.hub,
    }


def _registry_facts(spec: DatasetSpec) -> dict[str, str]:
    counts = {"train": spec.num_train, "val": spec.num_val, "test": spec.num_test}
    return {
        "classes": str(spec.num_classes),
        "images": ", ".join(f"{num:,} {split}" for split, num in counts.items() if num),
        "image size": f"{spec.image_size} px",
        "horizontal flip": "on" if spec.hflip else "off",
        "cite": spec.citation,
        "licence": spec.license,
        "page": spec.page,
        **({"hub": f"hf:{spec.hub}"} if spec.hub else {}),
    }


def _print_facts(title: str, facts: dict[str, str]) -> None:
    looks = {"title": escape(title), "show_header": False}
    print_rows(("fact", "value"), list(facts.items()), wrap=("value",), **looks)


def _print_files(spec: DatasetSpec) -> None:
    # Not in the table, which would break addresses and sums to be copied.
    for file in spec.files:
        here = "here" if (places.data_dir() / file.name).exists() else "not here"
        size = "" if file.size is None else f", {file.size:,} bytes"
        print_text(f"{file.name}{size}, md5 {file.md5}, {here}")
        for url in file.urls:
            print_text(f"  {url}")


def _print_counts(dataset: "Dataset", most: int) -> None:
    from smallvit.data.dataset import class_counts

    columns = [class_counts(split, dataset.num_classes) for split in dataset.splits.values()]
    rows = list(zip(dataset.class_names, *columns, strict=True)) if dataset.labelled else []
    lines = [(name, *(f"{count:,}" for count in row)) for name, *row in rows[:most]]
    if len(rows) > most:
        lines.append((f"... {len(rows) - most} more (--all)", *("" for _ in columns)))
    lines.append(("all", *(f"{len(split):,}" for split in dataset.splits.values())))
    print_rows(("class" if rows else "", *dataset.splits), lines, title="images")
