"""The content hash of an image: of its pixels as they are stored, whatever side they are packed at.

Two images have the same hash where they have the same pixels in full resolution, upright and with
transparency laid over white: in a file of any name and lossless format, in a table or an array.
"""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from smallvit.data.grey import GreyExtent, GreySetting
from smallvit.data.images import (
    find_turn,
    huge_image_alone,
    is_deep_grey,
    look_at_grey,
    over_white,
    to_rgb,
)

# JPEGs of this shorter side and more are hashed as they are coded: packing decodes them at 1/2 to
# 1/8, and decoding them in full as well would take several times as long. At 64 px and above,
# packing decodes all smaller ones in full.
CODED_SIDE = 256
STRIP_PIXELS = 1 << 16  # converted at a time: what fits into the processor's cache
_JPEG = ("JPEG", "MPO")
# Segments that say nothing of the pixels: EXIF and XMP, colour profiles, Photoshop's, comments.
_METADATA = frozenset((0xE1, 0xE2, 0xED, 0xFE))
_START_OF_SCAN = 0xDA


def content_hash(image: Image.Image) -> int:
    """Hash the pixels of an image, as ``open_image`` returns it.

    8-bit images of any mode are hashed as RGB, grey ones of more bits by their values, so that
    neither the packed side nor the scale of grey values matters. Of JPEGs of ``CODED_SIDE`` and
    more the coded pixels are hashed, without names, dates and other metadata.

    Args:
        image: Opened image; decoded in place unless it is such a JPEG.

    Returns:
        64 bits, not signed.

    Raises:
        OSError: If the content of the image breaks off.
    """
    coded = _hash_coded(image)
    return _hash_pixels(image) if coded is None else coded


class PackedImage(NamedTuple):
    """What packing makes of one image.

    Attributes:
        pixels: As ``to_rgb`` returns them; zeros where the scale of grey values is not known yet.
        content: Content hash.
        grey: What its grey values reach, where they have more than 8 bits.
    """

    pixels: np.ndarray
    content: int
    grey: GreyExtent | None


def pack_image(
    read: Callable[[], Image.Image], size: int, grey_range: GreySetting = "file"
) -> PackedImage:
    """Return an image as ``to_rgb`` does, its content hash, and what its grey values reach.

    Args:
        read: Opens the image; called again where packing decodes it at less than its resolution
            and the hash needs all of it.
        size: Side of the result, in pixels.
        grey_range: Grey values of more than 8 bits that become 0 and 255; ``auto`` leaves such an
            image for later, when those of all files are known.

    Raises:
        Exception: Whatever opening and decoding raise on a broken file.
    """
    image = read()
    content, full = _hash_coded(image), image.size
    # What is kept for the hash must not fill the memory; what is not is gone by then.
    with huge_image_alone(image) if content is None else nullcontext():
        grey = look_at_grey(image)
        if grey is not None and grey_range == "auto":
            pixels = np.zeros((3, size, size), dtype=np.uint8)
        else:
            scale = grey_range if isinstance(grey_range, tuple) else None
            pixels = to_rgb(image, size, scale)
        if content is None:
            content = _hash_pixels(image if image.size == full else read())
    return PackedImage(pixels, content, grey)


def _hash_coded(image: Image.Image) -> int | None:
    """Hash the coded pixels of a large JPEG that is not yet decoded; ``None`` for others."""
    file = getattr(image, "fp", None)
    if image.format not in _JPEG or min(image.size) < CODED_SIDE or not isinstance(file, BytesIO):
        return None
    content = file.getbuffer()
    digest = _digest(f"jpeg/{find_turn(image)}/")
    place = 2  # behind the start of the image
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind = content[place + 1]
        if kind == 0xFF:  # a byte of filling
            place += 1
            continue
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == _START_OF_SCAN:
            break
        if kind not in _METADATA:
            digest.update(content[place:end])
        place = end
    digest.update(content[place:])
    return int.from_bytes(digest.digest()[:8], "little")


def _hash_pixels(image: Image.Image) -> int:
    image.load()
    turn = find_turn(image)
    if turn is not None:
        image = image.transpose(turn)
    deep = is_deep_grey(image)
    kind = "grey" if deep else "rgb"
    digest = _digest(f"{kind}/{image.width}/{image.height}/")
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image
        if rows < image.height:
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if deep:  # float32 holds grey values of 16 bits and more as they are
            digest.update(np.asarray(strip).astype(np.float32).data)
        else:
            digest.update(over_white(strip).tobytes())
    return int.from_bytes(digest.digest()[:8], "little")


def _digest(start: str) -> "hashlib._Hash":
    # Of the digests that every Python has, the fastest with and without instructions for it.
    return hashlib.sha1(start.encode(), usedforsecurity=False)
