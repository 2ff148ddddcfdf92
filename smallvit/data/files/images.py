"""How any image file becomes RGB of one size."""

import threading
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from smallvit.data.files.file_kinds import kind_of, what_instead
from smallvit.data.files.grey import GreyRange, grey_values, to_levels

# Before version 11.3, which brought AVIF, features.check("avif") would warn.
_AVIF = {"AVIF": (".avif",)} if "avif" in features.get_supported_modules() else {}
# A file is tried as these formats and no other: among PIL's others is one that runs Ghostscript.
_FORMATS = {
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),  # and MPO, which PIL's reader of JPEG sees to
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    **_AVIF,
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
# What else photos, scans and drawings are kept in.
_UNREAD = (
    "arw avif cr2 cr3 dng eps exr hdr heic heif hif ico j2k jp2 jpf jpx jxl nef orf pef psd raf "
    "raw rw2 svg tga xcf"
)
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split()) - IMAGE_SUFFIXES
# Twice PIL's own warning level, where PIL raises its error: about 512 MiB of RGB once decoded.
MAX_PIXELS = 178_956_970
# PIL's limit is a variable of the process and warns from half of its error on. A file between the
# two is accepted here, and silencing that warning is not safe in threads: so the level is moved.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# With more pixels, one image is decoded at a time: many threads with 0.7 GB each fill the memory.
HUGE_PIXELS = 2**25
_one_huge_image = threading.RLock()
# PIL allocates large images in blocks. Above 32 MiB, glibc gives a block back as soon as it is
# free; smaller ones it may keep, for each thread.
Image.core.set_block_size(2**26)
# Modes that can be averaged before anything else; not palettes, nor grey of more than 8 bits.
_REDUCIBLE_MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"})
_UPRIGHT = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(file: Path | str | bytes) -> Image.Image:
    """Open an image file without decoding it: the content decides the format, not the suffix.

    The file is held in memory, so nothing stays open. Decoding is left to whoever uses the pixels;
    a file that breaks off fails there.

    Args:
        file: Path of the file, or its content.

    Raises:
        ValueError: If the content is empty, is of no format of ``IMAGE_SUFFIXES``, or has more
            than ``MAX_PIXELS`` pixels.
        OSError: If the file cannot be read.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not content:
        raise ValueError("the file is empty")
    too_large = f"more than {MAX_PIXELS:,} pixels: make it smaller"
    try:
        image = Image.open(BytesIO(content), formats=tuple(_FORMATS))
    except UnidentifiedImageError as error:
        what = f"{kind_of(content)} that is not read: convert it to PNG or JPEG"
        raise ValueError(what_instead(content) or what) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(too_large) from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(too_large)
    return image


def huge_image_alone(pixels: int) -> AbstractContextManager[object]:
    """Keep other threads from decoding more than ``HUGE_PIXELS`` while this one has such an image.

    Args:
        pixels: How many are to be decoded; an image of fewer keeps nobody.
    """
    return _one_huge_image if pixels > HUGE_PIXELS else nullcontext()


def is_deep_grey(image: Image.Image) -> bool:
    """Tell whether an image is grey of more than 8 bits, or of floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def over_white(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits to RGB, with transparency laid over white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_rgb(image: Image.Image, size: int, grey_range: GreyRange | None = None) -> np.ndarray:
    """Convert an image of any mode and size to uint8 RGB, channels first.

    The first frame counts and EXIF rotation is applied, where the EXIF data can be read. Grey is
    repeated over the channels, CMYK and palettes take their colours, transparency is laid over
    white. Grey values of more than 8 bits become 8 bits by ``grey_range``. The shorter side is
    resized to ``size`` (bicubic, antialiased), then the centre is cut out.

    Where the sides are at least 4 times ``size``, the resolution is lowered first, never below
    twice ``size``: a JPEG that is not yet decoded is decoded at 1/2, 1/4 or 1/8, which leaves out
    the frequencies that the resize would remove; then the means of n x n pixels are taken, except
    of palettes, 1-bit images and images with a transparent colour.

    Threads decode together, but images of more than ``HUGE_PIXELS`` pixels one by one.

    Args:
        image: Opened image; decoded in place, where it is not yet decoded.
        size: Side of the result, in pixels.
        grey_range: Values of more than 8 bits that become 0 and 255, one range for all images of a
            data set; ``None`` lets each image decide for itself: 16-bit images keep their upper 8
            bits, others are taken as floats within [0, 1], 8 bits or 16 bits by their values.

    Returns:
        Array of shape (3, size, size).

    Raises:
        ValueError: If grey values of more than 8 bits are no numbers, or fit none of the ranges.
        OSError: If the content of the image breaks off.
    """
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (2 * size, 2 * size))
        if "progressive" not in image.info:  # these are held whole at any scale
            pixels = image.width * image.height
    with huge_image_alone(pixels):
        image.load()
        turn = find_turn(image)
        if is_deep_grey(image):
            image = Image.fromarray(to_levels(grey_values(image), grey_range))
        factor = 1
        if image.mode in _REDUCIBLE_MODES and "transparency" not in image.info:
            factor = max(1, min(image.size) // (2 * size))
        width, height = image.width / factor, image.height / factor  # the last pixels may be parts
        if factor > 1:
            image = image.reduce(factor)
        image = over_white(image)
        if image.size != (size, size):
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box)
        if turn is not None:
            image = image.transpose(turn)
        return np.asarray(image).transpose(2, 0, 1)


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes a decoded image upright; ``None`` where it is, or does not say."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises nearly anything on malformed EXIF data; the pixels are whole
        return None
