"""The content hash of an image: of its pixels as they are stored, whatever side they are packed at.

Two images have the same hash where they have the same pixels in full resolution, upright and with
transparency laid over white: in a file of any name and lossless format, in a table or an array. Of
large JPEGs the pixels of a lower resolution are hashed, which are those of the same coefficients:
such a file with other metadata or coded anew without loss has the same hash, its pixels in another
format have not.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from smallvit.data.files.grey import GreyExtent, GreySetting, grey_extent
from smallvit.data.files.images import (
    find_turn,
    huge_image_alone,
    is_deep_grey,
    over_white,
    to_rgb,
)

# JPEGs of this shorter side and more are hashed as they are decoded at 1/2, 1/4 or 1/8, to at least
# half of it: packing does not decode them in full either, which would take several times as long.
LARGE_SIDE = 256
STRIP_PIXELS = 1 << 16  # converted at a time: what fits into the processor's cache
_JPEG = ("JPEG", "MPO")


def content_hash(image: Image.Image) -> int:
    """Hash the pixels of an image, as ``open_image`` returns it.

    8-bit images of any mode are hashed as RGB, grey ones of more bits by their values, so that
    neither the packed side nor the scale of grey values matters.

    Args:
        image: Opened image; decoded in place.

    Returns:
        64 bits, not signed.

    Raises:
        OSError: If the content of the image breaks off.
    """
    if not _is_large_jpeg(image):
        return _hash_pixels(image)
    pixels = image.width * image.height
    # A progressive JPEG is held whole at any scale.
    with huge_image_alone(pixels if "progressive" in image.info else 0):
        image.draft(None, (LARGE_SIDE // 2, LARGE_SIDE // 2))
        return _hash_pixels(image, pixels)


class PackedImage(NamedTuple):
    """What packing makes of one image.

    Attributes:
        pixels: As ``to_rgb`` returns them; zeros where the scale of grey values is not known yet.
        content: Content hash.
        grey: What its grey values reach, where they have more than 8 bits.
        pixel_hash: Hash of the pixels, once it is formed.
    """

    pixels: np.ndarray
    content: int
    grey: GreyExtent | None
    pixel_hash: int = 0


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
    full, large = image.size, _is_large_jpeg(image)
    # What is kept for the hash must not fill the memory; what is not is gone by then.
    with huge_image_alone(0 if large else full[0] * full[1]):
        grey = grey_extent(image) if is_deep_grey(image) else None
        if grey is not None and grey_range == "auto":
            pixels = np.zeros((3, size, size), dtype=np.uint8)
        else:
            scale = grey_range if isinstance(grey_range, tuple) else None
            pixels = to_rgb(image, size, scale)
        if not large:
            again = image if image.size == full else read()
            return PackedImage(pixels, _hash_pixels(again), grey)
    if image.size == _reduced(full):
        return PackedImage(pixels, _hash_pixels(image, full[0] * full[1]), grey)
    return PackedImage(pixels, content_hash(read()), grey)


def _is_large_jpeg(image: Image.Image) -> bool:
    return (
        image.format in _JPEG and min(image.size) >= LARGE_SIDE and bool(getattr(image, "tile", ()))
    )


def _reduced(full: tuple[int, int]) -> tuple[int, int]:
    """Return the size that a large JPEG is decoded at for its hash, as PIL's draft mode chooses."""
    scale = next(each for each in (8, 4, 2, 1) if each <= min(full) // (LARGE_SIDE // 2))
    return -(-full[0] // scale), -(-full[1] // scale)


def _hash_pixels(image: Image.Image, full: int | None = None) -> int:
    """Hash pixels; ``full`` is how many there are in full resolution, where these are fewer."""
    image.load()
    turn = find_turn(image)
    if turn is not None:
        image = image.transpose(turn)
    deep = is_deep_grey(image)
    kind = "grey" if deep else "rgb" if full is None else f"reduced/{full}"
    # Of the digests that every Python has, the fastest with and without instructions for it.
    start = f"{kind}/{image.width}/{image.height}/"
    digest = hashlib.sha1(start.encode(), usedforsecurity=False)
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
