"""``smallvit convert``."""

from pathlib import Path
from typing import TYPE_CHECKING

from smallvit.cli.options import Switch
from smallvit.core.console import say
from smallvit.core.errors import ConfigError

if TYPE_CHECKING:
    from smallvit.models.convert.public import Converted

# The papers' networks of 224 px were trained with these; those of small images with their own
# data set's, which no weights tell. Training through --init takes the new data set's.
MOST_SMALL = 64  # pixels, of the recipes that are chosen where none is named
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def convert_command(
    file: Path,
    /,
    *,
    out: Path,
    layout: str | None = None,
    model: str | None = None,
    overwrite: Switch = False,
) -> None:
    """Turn the public weights of a paper into an export that --init reads.

    Args:
        file: Weights: .pth, .pt or .safetensors.
        out: Folder of the export.
        layout: Where they come from: gani, lvvit, t2t or spt; by default told by their names.
        model: Network they are for; by default told by their shapes.
        overwrite: Replace an earlier export in that folder.
    """
    from smallvit.inference.export import write_export
    from smallvit.models.architecture import sides
    from smallvit.models.convert.checkpoint import read_checkpoint
    from smallvit.models.convert.public import convert

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        # The export of a run is its result, and stays.
        earlier = (out / "config.json").is_file() and not (out.parent / "result.json").is_file()
        if not (overwrite and earlier):
            remedy = "; or pass --overwrite" if earlier else ""
            raise ConfigError(f"{out} exists and is not empty: name another --out{remedy}")
    weights, notes = read_checkpoint(file)
    converted = convert(weights, layout=layout, model=model)
    num_classes = converted.arguments["num_classes"]
    write_export(
        out,
        converted.backbone,
        arguments=converted.arguments,
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        image_size=sides(converted.arguments["img_size"])[0],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        card=_card(file, converted),
    )
    height, width = sides(converted.arguments["img_size"])
    # Patches of networks for large images leave too few tokens of the small ones that recipes take.
    images = f" --data.image-size {height}" if height > MOST_SMALL else ""
    lines = [
        f"{converted.layout}: {converted.name}, {height} x {width} px, {num_classes} classes",
        f"mapped: {converted.num_mapped} weights, none left over",
        *notes,
        *converted.notes,
        "mean and std are written as ImageNet's, classes as numbers: weights tell neither",
        f"export: {out}",
        f"next: smallvit finetune --dataset NAME --init {out}{images}",
    ]
    say("\n".join(lines))


def _card(file: Path, converted: "Converted") -> str:
    from smallvit.inference.export import usage

    notes = "".join(f"- {note}\n" for note in converted.notes)
    return (
        f"# {converted.name} with the weights of {file.name}\n\n"
        f"Converted by smallvit from layout {converted.layout}; the weights' own licence applies. "
        "Mean and std are ImageNet's, classes are numbers: weights tell neither.\n\n"
        f"{notes}\n{usage(read=False)}"
    )
