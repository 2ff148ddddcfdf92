"""``smallvit data``."""

from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.table import Table

from smallvit.cli.options import overrides
from smallvit.core import places
from smallvit.core.config import Layer, resolve
from smallvit.core.errors import DataError
from smallvit.data.loader import DataConfig, class_counts, open_source
from smallvit.data.registry import DATASETS
from smallvit.run.stage import load_dataset

data_command = App(name="data", help="List data sets; describe one.", result_action="return_value")


@data_command.command
def ls() -> None:
    """List the data sets known by name, and whether their files are here."""
    table = Table("name", "classes", "train", "test", "pixels", "status", "licence")
    for spec in DATASETS.values():
        try:
            open_source(DataConfig(dataset=spec.name), data_dir=places.data_dir(), offline=True)
            status = "here"
        except DataError:
            status = "fetched when first used"
        test = f"{spec.num_test:,}" if spec.num_test else "cut"
        counts = (str(spec.num_classes), f"{spec.num_train:,}", test, str(spec.image_size))
        table.add_row(spec.name, *counts, status, spec.license)
    Console().print(table)
    Console().print("Any folder of class folders works too: smallvit data info PATH")


@data_command.command
def info(name: str, /, *, data: DataConfig = DataConfig()) -> None:
    """Describe a dataset: splits, classes, channel statistics, files left out.

    Args:
        name: A known name, or a folder of class folders.
        data: Size and splits.
    """
    by_name = name in DATASETS or not (Path(name).exists() or "/" in name)
    which = {"dataset": name} if by_name else {"path": name}
    settings = {**overrides().get("data", {}), **which}
    dataset = load_dataset(resolve(DataConfig, [Layer(source="command line", values=settings)]))
    spec = DATASETS.get(name)
    facts = Table(title=dataset.name, show_header=False)
    for key, value in {
        "classes": str(dataset.num_classes),
        "image size": f"{dataset.image_size} px",
        "mean (train)": ", ".join(f"{value:.4f}" for value in dataset.mean),
        "std (train)": ", ".join(f"{value:.4f}" for value in dataset.std),
        "horizontal flip": "on" if dataset.hflip else "off",
        "files left out": str(len(dataset.broken)),
        "fingerprint": dataset.fingerprint[:16],
        "packed in": str(dataset.store_path),
        "cite": spec.citation if spec else "your own images",
        "licence": spec.license if spec else "yours",
    }.items():
        facts.add_row(key, value)
    counts = Table("class", *dataset.splits, title="images")
    columns = [class_counts(split, dataset.num_classes) for split in dataset.splits.values()]
    for label, row in enumerate(zip(*columns, strict=True)):
        counts.add_row(dataset.class_names[label], *(f"{count:,}" for count in row))
    counts.add_section()
    counts.add_row("all", *(f"{len(split):,}" for split in dataset.splits.values()))
    console = Console()
    console.print(facts)
    console.print(counts)
    for broken in dataset.broken:
        console.print(f"left out: {broken}", markup=False, highlight=False, soft_wrap=True)
