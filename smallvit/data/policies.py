"""Augmentation policies: AutoAugment, RandAugment, TrivialAugment and 3-Augment on a whole batch.

A policy draws for each image one operation or several, each with a magnitude of its own; every
kind of operation is then one call for the images that drew it. Operations work on colours in
[0, 1] that stand for 256 levels and match torchvision's on bytes within one level.

Shapes in this file:
    B    images
    S    operations an image, one after the other
    H W  image in pixels
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib import resources
from typing import Literal, cast

import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from smallvit.data import augment, geometry
from smallvit.data.augment import Images
from smallvit.data.config import AutoAugmentPolicy, AutoAugmentRules, Policy

GREY = 128 / 255  # what moves in, by DeepVoltaire's rules
MAGNITUDE_BINS = 31  # of RandAugment and TrivialAugment
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
# What changes colours; each may overwrite the images that it is given.
CHANGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda images, change: augment.adjust_brightness_(images, 1 + change),
    "color": lambda images, change: augment.adjust_saturation_(images, 1 + change),
    "contrast": lambda images, change: augment.adjust_contrast_(images, 1 + change),
    "sharpness": lambda images, change: augment.adjust_sharpness(images, 1 + change),
    "posterize": augment.posterize_,
    "solarize": augment.solarize_above_,
    "autocontrast": lambda images, _: augment.autocontrast_(images),
    "equalize": lambda images, _: augment.equalize(images),
    "invert": lambda images, _: images.neg_().add_(1),
    "grey": lambda images, _: augment.grey(images).expand_as(images),
    "blur": augment.blur,
}
OPERATIONS = ("identity", *GEOMETRIC, *CHANGES)
CODE = {name: code for code, name in enumerate(OPERATIONS)}
SIGNED = (*GEOMETRIC, "brightness", "color", "contrast", "sharpness")
DRAWN = OPERATIONS[: CODE["invert"]]  # what RandAugment and TrivialAugment choose from


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What each image goes through.

    Attributes:
        code: Index of each operation in ``OPERATIONS``.
        magnitude: In the operation's own unit: fractions of the side for shear and translation,
            degrees, change of a factor from 1, bits kept, level in [0, 255], pixels of blur.
        possible: Names that can occur at all.
        rules: Whose shears are meant, and what moves in: black, or DeepVoltaire's grey.
    """

    code: Int[Tensor, "B S"]
    magnitude: Float[Tensor, "B S"]
    possible: tuple[str, ...]
    rules: AutoAugmentRules = "torchvision"


def choose_autoaugment(policy: Policy, learned_on: AutoAugmentPolicy) -> Policy:
    """Replace ``"autoaugment"`` by the policy learned on a dataset; others stay as they are."""
    return cast(Policy, f"autoaugment-{learned_on}") if policy == "autoaugment" else policy


def num_draws(policy: Policy, num_ops: int) -> int:
    """Return how many uniform numbers a policy takes for each image."""
    counts = {"none": 0, "randaugment": 2 * num_ops, "trivialaugment": 3, "3-augment": 2}
    return counts.get(policy, 5)


def sample_operations(
    policy: Policy,
    draws: Float[Tensor, "B n"],
    *,
    num_ops: int,
    magnitude: int,
    image_size: int,
    rules: AutoAugmentRules = "torchvision",
) -> Operations:
    """Turn uniform numbers into operations.

    Args:
        policy: Which one; ``"autoaugment"`` must have been replaced by one for a dataset.
        draws: As many for each image as ``num_draws`` says.
        num_ops: Operations an image, of RandAugment.
        magnitude: Bin of their magnitude, of RandAugment, from 0 to 30.
        image_size: Side of the images, in pixels; translations go by it.
        rules: Of AutoAugment. By those of DeepVoltaire rotations have one sign, translations are
            rounded to the nearest pixel and not down, shears are bicubic, what moves in is grey,
            and solarizing counts levels up to 256.

    Source:
        Rules of DeepVoltaire/AutoAugment as in hananshafi/vits-for-small-scale-datasets@43a7493,
        utils/autoaug.py and utils/transforms.py; the tables are the same.
        Cubuk et al., 2019, AutoAugment, https://arxiv.org/abs/1805.09501, tables 7 to 9; Cubuk et
        al., 2020, RandAugment, https://arxiv.org/abs/1909.13719; Mueller and Hutter, 2021,
        TrivialAugment, https://arxiv.org/abs/2103.10158 (its wide space); Touvron et al., 2022,
        DeiT III, https://arxiv.org/abs/2204.07118 (3-Augment). Ranges are torchvision's.
    """
    device = draws.device
    if policy in ("randaugment", "trivialaugment"):
        space, ops, bins = "common", num_ops, magnitude
        if policy == "trivialaugment":
            space, ops, bins = "wide", 1, _choose(draws[:, 1:2], MAGNITUDE_BINS)
        code = _choose(draws[:, :ops], len(DRAWN))
        value = _ranges(space, MAGNITUDE_BINS, image_size, device)[code, bins]
        value = _signed(code, value, draws[:, -ops:])
        return Operations(code=code, magnitude=value, possible=DRAWN)
    if policy == "3-augment":
        possible = ("grey", "solarize", "blur")
        codes = augment.constant(tuple(CODE[name] for name in possible), device).long()
        code = codes[_choose(draws[:, :1], 3)]
        sigma = 0.1 + 1.9 * draws[:, 1:]
        value = torch.where(code == CODE["solarize"], 128.0, sigma)
        return Operations(code=code, magnitude=value, possible=possible)
    codes, probs, bins, possible = _sub_policies(policy.removeprefix("autoaugment-"), device)
    chosen = _choose(draws[:, 0], len(codes))
    code = torch.where(draws[:, 1:3] < probs[chosen], codes[chosen], CODE["identity"])
    space = "common" if rules == "torchvision" else "deepvoltaire"
    value = _ranges(space, 10, image_size, device)[code, bins[chosen]]
    value = _signed(code, value, draws[:, 3:], rules)
    if rules == "deepvoltaire":
        moved = (code == CODE["translate_x"]) | (code == CODE["translate_y"])
        value = torch.where(moved, (value * image_size - 0.5).ceil() / image_size, value)
    return Operations(code=code, magnitude=value, possible=possible, rules=rules)


def apply_operations(images: Images, operations: Operations) -> Images:
    """Put each image through its operations.

    Args:
        images: Colours in [0, 1], which may be overwritten.
        operations: What to do to each.
    """
    if images.is_cuda:
        for code, value in zip(operations.code.T, operations.magnitude.T, strict=True):
            apply_to_all_(images, code, value, operations.possible, operations.rules)
        return images
    # Sorted by operation, the images of each are neighbours in memory. They are put back at the
    # end only.
    order = torch.arange(len(images))
    for code, value in zip(operations.code.T, operations.magnitude.T, strict=True):
        code, by_code = code[order].sort()
        order = order[by_code]
        images = images.index_select(0, by_code)
        _apply_to_sorted_(images, code, value[order], operations.rules)
    return images.index_select(0, order.argsort())


def _apply_to_sorted_(
    images: Images,
    code: Int[Tensor, " B"],
    value: Float[Tensor, " B"],
    rules: AutoAugmentRules,
) -> None:
    counts = torch.bincount(code, minlength=len(OPERATIONS)).tolist()
    moving = sum(counts[1 : 1 + len(GEOMETRIC)])
    sizes = [counts[0], moving, *counts[1 + len(GEOMETRIC) :]]  # those that stay come first
    parts, values = images.split(sizes), value.split(sizes)
    if moving:
        parts[1].copy_(_move(parts[1], code.split(sizes)[1], values[1], rules))
    for change, part, own in zip(CHANGES.values(), parts[2:], values[2:], strict=True):
        if len(part) and (changed := change(part, own)) is not part:
            part.copy_(changed)


def apply_to_all_(
    images: Images,
    code: Int[Tensor, " B"],
    value: Float[Tensor, " B"],
    possible: tuple[str, ...],
    rules: AutoAugmentRules,
) -> None:
    """Compute each operation for all images and keep what was drawn: the host need not wait."""
    if can_move(possible):
        images.copy_(_move(images, code, value, rules))  # not at all where nothing moves
    for name, change in CHANGES.items():
        if name in possible:
            augment.change_chosen_(images, code == CODE[name], change, value)


def _move(
    images: Images,
    code: Int[Tensor, " B"],
    value: Float[Tensor, " B"],
    rules: AutoAugmentRules,
) -> Images:
    """Do the geometric operation of each image, where it has one."""
    affine = affine_of(code, value)
    if rules == "torchvision":
        return geometry.warp(images, affine, nearest=True, fill="zero")
    sheared = (code == CODE["shear_x"]) | (code == CODE["shear_y"])
    down = code == CODE["shear_y"]
    upright = torch.where(down[:, None, None, None], images.mT, images)
    moved = geometry.warp(images, affine, nearest=True, fill=GREY)
    bent = geometry.shear(upright, value * sheared, fill=GREY)
    bent = torch.where(down[:, None, None, None], bent.mT, bent)
    return torch.where(sheared[:, None, None, None], bent, moved)


def can_move(possible: tuple[str, ...]) -> bool:
    """Tell whether some of the operations are geometric."""
    return not set(GEOMETRIC).isdisjoint(possible)


def total_move(operations: Operations) -> Float[Tensor, "B 2 3"] | None:
    """Return what the geometric operations of each image together come to.

    Returns:
        Transforms for ``geometry.warp``; ``None`` where no operation moves anything.
    """
    if not can_move(operations.possible):
        return None
    steps = [
        affine_of(code, value)
        for code, value in zip(operations.code.T, operations.magnitude.T, strict=True)
    ]
    return reduce(lambda inner, outer: geometry.compose(outer, inner), steps)


def affine_of(code: Int[Tensor, " B"], magnitude: Float[Tensor, " B"]) -> Float[Tensor, "B 2 3"]:
    """Return each image's geometric operation as ``geometry.warp`` takes it.

    Others are the identity. Shears hold the upper left corner, as PIL does.
    """
    slopes, radians = _affine_tables(code.device)
    matrix = slopes[code] * magnitude[:, None]
    # In float64 until they are rounded: the last bit must not depend on the lane of a vector unit.
    angle = (radians[code] * magnitude).double()
    cos, sin = angle.cos().float(), angle.sin().float()
    matrix += torch.stack([cos, -sin, cos * 0, sin, cos, cos * 0], dim=1)
    return matrix.unflatten(1, (2, 3))


@lru_cache(maxsize=8)
def _affine_tables(
    device: torch.device,
) -> tuple[Float[Tensor, "operations 6"], Float[Tensor, " operations"]]:
    """What one unit of magnitude adds to each entry of the matrix, and to the angle."""
    slopes, radians = torch.zeros(len(OPERATIONS), 6), torch.zeros(len(OPERATIONS))
    slopes[CODE["shear_x"], [1, 2]] = 1.0
    slopes[CODE["shear_y"], [3, 5]] = 1.0
    slopes[CODE["translate_x"], 2] = -2.0
    slopes[CODE["translate_y"], 5] = -2.0
    radians[CODE["rotate"]] = math.pi / 180
    return slopes.to(device), radians.to(device)


def _choose(draws: Float[Tensor, "*shape"], num: int) -> Int[Tensor, "*shape"]:
    return (draws * num).long().clamp_(max=num - 1)


def _signed(
    code: Int[Tensor, "B S"],
    value: Float[Tensor, "B S"],
    draws: Float[Tensor, "B S"],
    rules: AutoAugmentRules = "torchvision",
) -> Float[Tensor, "B S"]:
    both = set(SIGNED) if rules == "torchvision" else set(SIGNED) - {"rotate"}
    signed = augment.constant(tuple(name in both for name in OPERATIONS), code.device)
    return torch.where((draws < 0.5) & (signed[code] > 0), -value, value)


@lru_cache(maxsize=8)
def _sub_policies(
    name: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Return codes, probabilities and bins, each (policies, 2), and the operations that occur."""
    table = resources.files("smallvit.data").joinpath("autoaugment.yaml").read_text("utf-8")
    parsed = [
        [operation.split() for operation in line.split(",")] for line in yaml.safe_load(table)[name]
    ]
    code, prob, bins = (
        torch.tensor([[convert(operation[i]) for operation in line] for line in parsed]).to(device)
        for i, convert in enumerate((CODE.__getitem__, float, int))
    )
    names = {operation[0] for line in parsed for operation in line}
    return code, prob, bins, ("identity", *(name for name in OPERATIONS if name in names))


@lru_cache(maxsize=8)
def _ranges(
    space: Literal["common", "wide", "deepvoltaire"],
    num_bins: int,
    image_size: int,
    device: torch.device,
) -> Float[Tensor, "operations bins"]:
    """Magnitude of every operation in every bin, without sign."""
    wide = space == "wide"
    shift = min(32 / image_size, 1.0) if wide else 150 / 331
    tops: dict[str, float] = {
        "shear_x": 0.99 if wide else 0.3,
        "shear_y": 0.99 if wide else 0.3,
        "rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9),
    }
    ramp = torch.linspace(0, 1, num_bins)
    table = torch.zeros(len(OPERATIONS), num_bins)
    for name, top in tops.items():
        table[CODE[name]] = top * ramp
    theirs = space == "deepvoltaire"
    for name in ("translate_x", "translate_y"):  # whole pixels, rounded towards 0
        table[CODE[name]] = (
            shift * ramp if theirs else (shift * image_size * ramp).floor() / image_size
        )
    table[CODE["posterize"]] = 8 - ((6 if wide else 4) * ramp).round()
    table[CODE["solarize"]] = (256 if theirs else 255) * (1 - ramp)
    return table.to(device)
