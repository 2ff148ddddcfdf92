"""One scale for the grey values of a data set that have more than 8 bits.

An 8-bit image states its range. Of 16-bit integers, 32-bit integers and floats the values alone
tell it, and those of one file tell too little: so all such files of a data set are looked at, and
one range is what becomes 0 to 255 in each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from smallvit.core.errors import DataError

GreyRange = tuple[float, float]
# A range, or who decides it: all files of a data set, or each file for itself.
GreySetting = GreyRange | Literal["auto", "file"]
# Largest values of 8, 10, 12, 14 and 16 bits: with these, the upper 8 bits are kept.
_SHIFTS = {255: 0, 1023: 2, 4095: 4, 16383: 6, 65535: 8}
_FLOAT_TOPS = (1, 4, 16, *_SHIFTS)
_FLOAT_SLACK = 0.1  # resampling leaves floats a little outside of the range that they had
_UNUSED = 4  # a range this many times what is used of it is worth a word
_DARK = 16  # a file below this part of the range is nearly black


class GreyExtent(NamedTuple):
    """What the grey values of one file reach from and to."""

    low: float
    high: float
    floats: bool


@dataclass(frozen=True, kw_only=True)
class GreyScale:
    """How the grey values of more than 8 bits of a data set became 8 bits.

    Attributes:
        range: The values that became 0 and 255; what lies outside was cut off. ``None`` where the
            values of each file decided for that file alone, as they did for older runs.
        given: Whether the range was a setting; else all files together decided it.
        count: Files with such values.
        low: Smallest value of all of them.
        high: Largest value.
        notes: What a user should know, one line each.
    """

    range: GreyRange | None
    given: bool
    count: int
    low: float
    high: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        values = f"{self.count:,} files of more than 8 bits, values {self.low:g} to {self.high:g}"
        if self.range is None:
            return f"{values}, each scaled by itself"
        origin = "data.grey_range" if self.given else "decided from all files"
        return f"{values}; {self.range[0]:g} to {self.range[1]:g} become 0 to 255 ({origin})"


def grey_values(image: Image.Image) -> np.ndarray:
    """Return the values of an image with more than 8 bits, decoded."""
    values = np.asarray(image)
    return values.astype(np.uint16) if image.mode.startswith("I;16") else values


def grey_extent(image: Image.Image) -> GreyExtent:
    """Look at the values of an image with more than 8 bits.

    Raises:
        ValueError: If some are no finite numbers.
    """
    values = grey_values(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("it holds grey values that are no numbers (NaN or infinite): replace them")
    return GreyExtent(low, high, values.dtype.kind == "f")


def choose_range(files: Sequence[tuple[str, GreyExtent]], dataset: str) -> GreyRange:
    """Choose the smallest usual range from 0 on that holds the values of all files.

    Integers are taken as 8, 10, 12, 14 or 16 bits, floats also as up to 1, 4 or 16.

    Args:
        files: Name of each file and what it holds; not empty.
        dataset: Name of the data set, for messages.

    Raises:
        DataError: If no usual range holds them; the message says how to name one.
    """
    lowest, (low, *_) = min(files, key=lambda file: file[1].low)
    highest, (_, high, _) = max(files, key=lambda file: file[1].high)
    floats = any(extent.floats for _, extent in files)
    slack = _FLOAT_SLACK if floats else 0.0
    tops = [top for top in (_FLOAT_TOPS if floats else _SHIFTS) if high <= top * (1 + slack)]
    if not tops or low < -slack * tops[0]:
        extreme = highest if not tops else lowest
        raise DataError(
            f"{dataset}: the grey values of its files run from {low:g} to {high:g} (first: "
            f"{extreme}), which is no usual range: say which values are black and white, such as "
            f"{_option(low, high)}"
        )
    return 0.0, float(tops[0])


def describe_scale(
    files: Sequence[tuple[str, GreyExtent]], scale: GreyRange | None, *, given: bool
) -> GreyScale:
    """Say what a range does to the files of a data set.

    Args:
        files: Name of each file and what it holds.
        scale: The range; ``None`` where each file is scaled by itself.
        given: Whether it was a setting.
    """
    lows = [extent.low for _, extent in files] or [0.0]
    highs = [extent.high for _, extent in files] or [0.0]
    notes = () if scale is None else tuple(_notes(files, scale, given=given))
    return GreyScale(
        range=scale, given=given, count=len(files), low=min(lows), high=max(highs), notes=notes
    )


def _notes(files: Sequence[tuple[str, GreyExtent]], scale: GreyRange, *, given: bool) -> list[str]:
    if not files:
        return ["data.grey_range is not used: no image has more than 8 bits a channel"]
    low, high = scale
    span = high - low
    least = min(extent.low for _, extent in files)
    most = max(extent.high for _, extent in files)
    notes = []
    if span > _UNUSED * (min(most, high) - max(least, low)):
        notes.append(
            f"grey values of more than 8 bits lie between {least:g} and {most:g}, so most of the "
            f"range {low:g} to {high:g} is unused and contrast is lost: {_option(least, most)} "
            "would use it"
        )
    dark = [file for file in files if file[1].high < low + span / _DARK]
    if dark and len(dark) < len(files):
        notes.append(_say_files(dark, files, f"are nearly black on the scale {low:g} to {high:g}"))
    slack = _FLOAT_SLACK * span
    outside = [file for file in files if file[1].low < low - slack or file[1].high > high + slack]
    if given and outside:
        what = f"have values outside of {low:g} to {high:g}, which are cut off"
        notes.append(_say_files(outside, files, what))
    return notes


def _option(low: float, high: float) -> str:
    return f"--data.grey-range {low:.6g} {high if high > low else low + 1:.6g}"


def _say_files(
    some: Sequence[tuple[str, GreyExtent]], files: Sequence[tuple[str, GreyExtent]], what: str
) -> str:
    name, extent = some[0]
    return (
        f"{len(some):,} of {len(files):,} files with grey values of more than 8 bits {what}; "
        f"first: {name} ({extent.low:g} to {extent.high:g}): save all on one scale, or set the "
        "values of black and white with --data.grey-range LOW HIGH"
    )


def to_levels(values: np.ndarray, scale: GreyRange | None) -> np.ndarray:
    """Scale grey values to 8 bits.

    Args:
        values: Of one image, decoded.
        scale: The values that become 0 and 255; ``None`` takes the range that these values seem to
            have: floats within [0, 1], 8 bits or 16 bits.

    Raises:
        ValueError: If they are no numbers, or, without a range, fit none.
    """
    if scale is None:
        scale = _own_range(values)
    low, high = scale
    if not np.isfinite((float(values.min()), float(values.max()))).all():
        raise ValueError("it holds grey values that are no numbers (NaN or infinite): replace them")
    if low == 0 and high in _SHIFTS:
        whole = np.clip(values, 0, high).astype(np.uint16)
        return (whole >> _SHIFTS[int(high)]).astype(np.uint8)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _own_range(values: np.ndarray) -> GreyRange:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # so written, NaN is refused too
        raise ValueError(
            f"grey values from {low:g} to {high:g} fit none of the ranges [0, 1] (floats), "
            "[0, 255] and [0, 65535]: rescale them"
        )
    if high > 255 or values.dtype == np.uint16:
        return 0.0, 65535.0
    return 0.0, 1.0 if high <= 1 and values.dtype.kind == "f" else 255.0
