"""Image files as the networks saw them in training."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from smallvit.core.errors import ConfigError, DataError, explained, reason
from smallvit.core.run_folder import Run
from smallvit.data.augment import normalize, to_float
from smallvit.data.files.config import check_range
from smallvit.data.files.grey import GreyRange
from smallvit.data.files.images import is_deep_grey, open_image, to_rgb

PIXELS = "pixels"  # key of an export's config.json: how files became the pixels it was trained on
BY_FILE = "file"  # grey range of exports whose files were scaled each by itself
# What reading a file of JSON may raise that is cut off, or whose values are of other types.
BROKEN = (OSError, LookupError, RuntimeError, TypeError, ValueError)
ImageLike = Path | str | bytes | Image.Image


class _Reading(NamedTuple):
    size: int
    grey_range: GreyRange | Literal["file"] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@overload
def read_image(
    image: ImageLike,
    *,
    like: Run | Path | str,
    grey_range: GreyRange | None = None,
    normalized: Literal[True],
) -> Float[Tensor, "3 H W"]: ...


@overload
def read_image(
    image: ImageLike,
    *,
    like: Run | Path | str | None = None,
    size: int | None = None,
    grey_range: GreyRange | None = None,
    normalized: Literal[False] = False,
) -> np.ndarray: ...


def read_image(
    image: ImageLike,
    *,
    like: Run | Path | str | None = None,
    size: int | None = None,
    grey_range: GreyRange | None = None,
    normalized: bool = False,
) -> np.ndarray | Tensor:
    """Read and resize an image bit for bit as packing a data set does.

    Args:
        image: Path or content of a file, or a PIL image. Of a large JPEG that is decoded already,
            the pixels may differ by a few levels: give the file.
        like: Run or export whose size, grey values and normalization are meant.
        size: Side in pixels, where no ``like`` gives it.
        grey_range: Values of more than 8 bits that become 0 and 255; that of ``like`` by default.
        normalized: Return what the network takes, in place of bytes.

    Returns:
        uint8 array of shape (3, H, W); with ``normalized``, a float32 tensor of that shape.

    Raises:
        ConfigError: If it is not said how to read the image.
        DataError: If the image or the export cannot be read.
    """
    if (like is None) == (size is None):
        raise ConfigError("read_image takes like=RUN_OR_EXPORT, or size=PIXELS: give one of them")
    if normalized and like is None:
        raise ConfigError("normalized=True needs like=RUN_OR_EXPORT, which has mean and std")
    if size is not None and not (type(size) is int and size >= 1):
        raise ConfigError(f"size must be a whole number of pixels, got {size!r}")
    if grey_range is not None:
        check_range(grey_range)
    reading = _Reading(size or 0, None, (), ()) if like is None else _read_like(like)
    name = str(image) if isinstance(image, Path | str) else "the image"
    # PIL raises nearly anything on a broken file.
    with explained(lambda error: f"{name} cannot be read: {reason(error)}", Exception):
        opened = _open(image)
        wanted = grey_range or reading.grey_range
        if wanted is None and is_deep_grey(opened):
            raise ConfigError(
                f"{name} has grey values of more than 8 bits, and "
                + ("nothing says" if like is None else f"{like} was trained on none, so it is open")
                + " which are black and white: give grey_range=(LOW, HIGH)"
            )
        pixels = to_rgb(opened, reading.size, None if wanted == BY_FILE else wanted)
    if not normalized:
        return pixels
    mean, std = torch.tensor(reading.mean), torch.tensor(reading.std)
    return normalize(to_float(torch.from_numpy(pixels.copy())[None]), mean, std)[0]


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, Path | str | bytes):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"read_image takes a path, bytes or a PIL image, not {type(image).__name__}: for an "
            "array, PIL.Image.fromarray makes one"
        )
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None):
        return image  # decoded already
    # Read anew: decoding a large JPEG at a fraction of its size would shrink the caller's image.
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return open_image(content)


def _read_like(like: Run | Path | str) -> _Reading:
    folder = like.path if isinstance(like, Run) else Path(like).expanduser()
    if (folder / "result.json").is_file() or not (folder / "config.json").is_file():
        folder = folder / "export"
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{like} is neither a run with an export nor an export: name a finished run, or a "
            "folder with config.json"
        )
    remedy = "finish its run, or repeat it"
    with explained(
        lambda error: f"{folder} is no whole export ({type(error).__name__}): {remedy}", *BROKEN
    ):
        config = json.loads((folder / "config.json").read_text())
        facts = config["pretrained_cfg"]
        # Exports of older versions do not have the key: each file was scaled by itself then.
        pixels: dict[str, Any] = config.get(PIXELS, {"grey_range": BY_FILE})
        if pixels.get("fit", "crop") != "crop":
            raise ConfigError(
                f"{like} was trained for segmentation, on images with a border instead of cut to "
                "squares, which read_image does not make: name a run of another stage"
            )
        grey = pixels["grey_range"]
        if isinstance(grey, list):
            grey = (float(grey[0]), float(grey[1]))
            check_range(grey)
        return _Reading(int(facts["input_size"][1]), grey, facts["mean"], facts["std"])
