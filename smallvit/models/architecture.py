"""Registering this package's architectures with timm.

Every architecture is a function that builds a module from plain numbers; timm calls it by name,
as ``timm.create_model(name, img_size=32, ...)``.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._pretrained import DefaultCfg
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.models.tokens import AbstractBackbone

# timm looks for this name in the module of a registered function.
default_cfgs: dict[str, DefaultCfg] = {}
# A transformer with fewer patch tokens has nothing to attend to.
LEAST_TOKENS = 5
# More are never made without a word: the memory of attention grows with their square.
MANY_TOKENS = 400
SIDES = range(8, 1025)  # of the images that a data set is packed at, in pixels


# Settings of ``ModelConfig`` that a transformer takes, and one with windows and stages.
TRANSFORMER = frozenset(
    {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate"}
)
WINDOWS = frozenset({"patch_size", "embed_dim", "mlp_ratio", "drop_path_rate", "window_size"})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rest of the package needs to know of an architecture.

    Attributes:
        settings: Settings of ``ModelConfig`` that it takes.
        is_cnn: Whether it is a CNN, which two tokens are enough for.
        num_stages: Stages that the setting ``stride`` is spread over.
        check: Refuses settings, by name, that the architecture cannot have.
        timm_model: Returns timm's name and arguments for images of a size and a patch, if one is
            given; an export carries these. ``None`` exports the architecture under its own name.
        told_by: timm's name and those arguments of an export that no setting gives, which tell it
            from timm's own network.
        init: Draws weights of a fresh network that its modules draw otherwise.
        advice: Says what to take for images, by height and width, that too little is left of.
    """

    settings: frozenset[str] = TRANSFORMER
    is_cnn: bool = False
    num_stages: int = 3
    check: Callable[[Mapping[str, Any]], None] | None = None
    timm_model: Callable[[int | tuple[int, int], int | None], tuple[str, dict[str, Any]]] | None = (
        None
    )
    told_by: tuple[str, Mapping[str, Any]] | None = None
    init: Callable[[AbstractBackbone], None] | None = None
    advice: Callable[[tuple[int, int]], str] | None = None


ARCHITECTURES: dict[str, Facts] = {}


def any_patch(patch_size: int) -> bool:
    """Tell that a network which cuts images into squares can make any patch."""
    return patch_size >= 1


def register_architecture(
    name: str,
    build: Callable[..., nn.Module],
    doc: str,
    *,
    img_size: int = 32,
    num_classes: int = 10,
    classifier: str = "head",
    first_conv: str | None = None,
    feature_cls: str = "getter",
    pooling: str | None = None,
    facts: Facts = Facts(),
    **defaults: Any,
) -> None:
    """Make ``timm.create_model(name, **arguments)`` call ``build(**defaults, **arguments)``.

    Args:
        name: timm's name for it.
        build: Builds the module; ``img_size``, ``num_classes`` and ``in_chans`` are among its
            arguments, and all others have timm's names.
        doc: What it is, in one line.
        img_size: Side that it is made for unless one is given, in pixels.
        num_classes: Classes unless a number is given.
        classifier: Name of the classifier in the module.
        first_conv: Name of the layer that reads the colours; ``None`` where there is not one.
        feature_cls: How timm's ``features_only`` reads levels: ``getter`` for transformers.
        pooling: The only pooling that it has; ``None`` where ``build`` takes ``global_pool``.
        facts: What the rest of the package needs to know of it.
        defaults: Arguments of this variant.
    """
    default_cfgs[name] = generate_default_cfgs(
        {
            name: {
                "input_size": (3, img_size, img_size),
                "fixed_input_size": True,
                "num_classes": num_classes,
                "crop_pct": 1.0,
                "interpolation": "bicubic",
                "classifier": classifier,
                "first_conv": first_conv,
            }
        }
    )[name]

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        given = kwargs.pop("global_pool", pooling) if pooling else None
        if given != pooling:
            raise ConfigError(f"{name} pools by {pooling}, not by {given}: leave global_pool out")
        return build_model_with_cfg(
            build,
            name,
            pretrained,
            feature_cfg={"out_indices": (-1,), "feature_cls": feature_cls},
            **{**defaults, **kwargs},
        )

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = doc
    ARCHITECTURES[name] = facts
    register_model(entry_point)


def sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a side, or of both."""
    if isinstance(img_size, int):
        return img_size, img_size
    height, width = img_size
    return height, width


def what_divides(
    img_size: int | Sequence[int], patch_size: int, suits: Callable[[int], bool] = any_patch
) -> str:
    """Say which patches would suit images of a size, and which sizes a patch.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: What was asked for and does not divide them, or leaves too few tokens.
        suits: Which patches the network can make.
    """
    height, width = sides(img_size)
    fits = fitting_patches(img_size, suits)
    if suits(1) and height * width <= MANY_TOKENS:
        fits = [1, *fits]
    found = [f"{', '.join(map(str, fits))} would"] if fits else []
    # Even multiples: half of them, which small views are, is divided as well.
    near = [(height // (2 * patch_size) + more) * 2 * patch_size for more in (0, 1)]
    near = [n for n in near if n >= 4 * patch_size and n in SIDES and n != height]
    if height == width and near and suits(patch_size):
        found.append(f"--data.image-size {' or '.join(map(str, near))} would suit it")
    return ", or ".join(found) or _near(height, width, 8, 16, suits)


def fitting_patches(
    img_size: int | Sequence[int], suits: Callable[[int], bool] = any_patch
) -> list[int]:
    """List the patches of 2 px or more that cut images evenly, into tokens enough.

    Args:
        img_size: Side, or height and width, in pixels.
        suits: Which patches the network can make.
    """
    height, width = sides(img_size)
    common = math.gcd(height, width)
    small = [p for p in range(1, math.isqrt(common) + 1) if common % p == 0]
    return [
        p
        for p in sorted({*small, *(common // p for p in small)})
        if p > 1 and suits(p) and (height // p) * (width // p) >= LEAST_TOKENS
    ]


def choose_patch(
    img_size: int | Sequence[int],
    patch_size: int | None = None,
    suits: Callable[[int], bool] = any_patch,
    *,
    tokens: int = 8,
    most: int = 16,
    windows: bool = False,
) -> int:
    """Return the patch that is asked for, checked, or else the largest that leaves enough tokens.

    Where none leaves so many, it is the smallest that leaves any tokens to attend to; never 1 px.
    More than ``MANY_TOKENS`` are made with a warning, which says what would make fewer.

    Args:
        img_size: Side, or height and width, in pixels.
        patch_size: Side of a patch in pixels; ``None`` is the network's choice.
        suits: Which patches the network can make.
        tokens: Patches along the shorter side at least; 2 px is taken where that leaves fewer.
        most: Largest patch that is chosen, in pixels.
        windows: Whether attention stays within windows, so that many tokens cost no more each.

    Raises:
        ConfigError: If the network can't make such patches, they don't divide the image, or they
            leave 4 tokens or fewer; the message says which patches or sizes would do.
    """
    height, width = sides(img_size)
    if patch_size is not None:
        if suits(patch_size) and patch_size in (1, *fitting_patches(img_size, suits)):
            return patch_size
        stem = "" if suits is any_patch else "suit the stem and "
        raise ConfigError(
            f"model.patch_size ({patch_size}) must {stem}divide images of {height} x {width} px "
            f"into at least {LEAST_TOKENS} tokens; {what_divides(img_size, patch_size, suits)}"
        )
    patch = _choose(img_size, tokens, most, suits)
    if patch is None:
        what = "patch of this stem" if suits is not any_patch else "patch of 2 px or more"
        raise ConfigError(
            f"no {what} cuts images of {height} x {width} px evenly: "
            f"{_near(height, width, tokens, most, suits, windows=windows)}"
        )
    num = (height // patch) * (width // patch)
    if num > MANY_TOKENS and not windows:
        larger = [
            p
            for p in fitting_patches(img_size, suits)
            if p > patch and 7**2 <= (height // p) * (width // p) <= MANY_TOKENS
        ]
        fewer = (
            f"model.patch_size {larger[0]} would leave {height // larger[0] * (width // larger[0])}"
            if larger
            else _near(height, width, tokens, most, suits)
        )
        warnings.warn(
            f"images of {height} x {width} px are cut into {num:,} patches of {patch} px by "
            f"default, and the memory of attention grows with the square of that: {fewer}",
            stacklevel=2,
        )
    return patch


def _choose(
    img_size: int | Sequence[int], tokens: int, most: int, suits: Callable[[int], bool]
) -> int | None:
    limit = min(most, max(2, min(sides(img_size)) // tokens))
    fits = fitting_patches(img_size, suits)
    return max((p for p in fits if p <= limit), default=fits[0] if fits else None)


def _near(
    height: int,
    width: int,
    tokens: int,
    most: int,
    suits: Callable[[int], bool],
    *,
    windows: bool = False,
) -> str:
    """Say which sizes near to that of the images have a patch that leaves no surprising number."""

    def is_good(n: int) -> bool:
        # Half of an even number of patches, which small views are, is whole as well.
        patch = _choose(n, tokens, most, suits)
        return bool(
            patch and n % (2 * patch) == 0 and (windows or (n // patch) ** 2 <= MANY_TOKENS)
        )

    shorter = min(height, width)
    below = next(filter(is_good, range(min(shorter - 1, SIDES[-1]), SIDES[0] - 1, -1)), None)
    above = next(filter(is_good, range(max(shorter + 1, SIDES[0]), SIDES[-1] + 1)), None)
    near = [n for n in (below, above) if n is not None]
    if height != width:
        patch = _choose(min(near, key=lambda n: abs(n - shorter)), tokens, most, suits)
        assert patch is not None
        height, width = (max(3, round(side / patch)) * patch for side in (height, width))
        return f"{height} x {width} px would do"
    text = f"--data.image-size {' or '.join(map(str, near))} would do"
    if suits(1) and height * width <= MANY_TOKENS and not windows:
        text += f", or model.patch_size 1 ({height * width} tokens)"
    return text
