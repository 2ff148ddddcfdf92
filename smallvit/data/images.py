"""How any image file becomes RGB of one size."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset(
    {
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Twice PIL's own warning level, where PIL raises its error: about 512 MiB of RGB once decoded.
MAX_PIXELS = 178_956_970
# PIL's limit is a variable of the process and warns from half of its error on. A file between the
# two is accepted here, and silencing that warning is not safe in threads: so the level is moved.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def open_image(file: Path | str | bytes) -> Image.Image:
    """Open an image file without decoding it: the content decides the format, not the suffix.

    The file is held in memory, so nothing stays open. Decoding is left to whoever uses the pixels;
    a file that breaks off fails there.

    Args:
        file: Path of the file, or its content.

    Raises:
        ValueError: If the content is empty, is of no format that PIL reads, or has more than
            ``MAX_PIXELS`` pixels.
        OSError: If the file cannot be read.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(BytesIO(content))
    except UnidentifiedImageError:
        heif = content[4:8] == b"ftyp"
        what = "HEIC or another format" if heif else "no image, or of a format"
        raise ValueError(f"{what} that PIL does not read: convert it to PNG or JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(_too_large()) from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large())
    return image


def read_image(file: Path | str | bytes) -> Image.Image:
    """Decode an image file whole, so that a broken one fails here.

    Args:
        file: Path of the file, or its content.

    Raises:
        ValueError: As ``open_image``.
        OSError: If the file cannot be read or its content breaks off.
    """
    image = open_image(file)
    image.load()
    return image


def to_rgb(image: Image.Image, size: int) -> np.ndarray:
    """Convert an image of any mode and size to uint8 RGB, channels first.

    The first frame counts and EXIF rotation is applied. Grey is repeated over the channels, CMYK
    and palettes take their colours, transparency is laid over white. 16-bit images keep their
    upper 8 bits. 32-bit integers and floats state no range, so their values decide: floats within
    [0, 1] are scaled by 255, up to 255 is taken as 8 bits, up to 65535 as 16 bits. The shorter side
    is resized to ``size`` (bicubic, antialiased), then the centre is cut out.

    A JPEG whose sides are at least 4 times ``size`` and that is not yet decoded is decoded at 1/2,
    1/4 or 1/8 of its resolution, never below twice ``size``: the decoder leaves out the frequencies
    that the resize would remove. Other images are decoded whole.

    Args:
        image: Opened image; decoded in place, where it is not yet decoded.
        size: Side of the result, in pixels.

    Returns:
        Array of shape (3, size, size).

    Raises:
        ValueError: If the values of a 32-bit image fit none of the ranges.
        OSError: If the content of the image breaks off.
    """
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (2 * size, 2 * size))
    image.load()
    # Asked first, since exif_transpose copies an image that lies as it should.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values without a stated range to 8 bits."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # so written, NaN is refused too
        raise ValueError(
            f"grey values from {low:g} to {high:g} fit none of the ranges [0, 1] (floats), "
            "[0, 255] and [0, 65535]: rescale them"
        )
    if high > 255:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    if high <= 1 and values.dtype.kind == "f":
        return np.rint(values * 255).astype(np.uint8)
    return values.astype(np.uint8)


def _too_large() -> str:
    return f"more than {MAX_PIXELS:,} pixels: make it smaller"
