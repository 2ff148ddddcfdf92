"""Registering this package's architectures with timm.

Every architecture is a function that builds a module from plain numbers; timm calls it by name,
as ``timm.create_model(name, img_size=32, ...)``.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._pretrained import DefaultCfg
from torch import nn

from smallvit.core.errors import ConfigError

# timm looks for this name in the module of a registered function.
default_cfgs: dict[str, DefaultCfg] = {}
NAMES: list[str] = []


def register_architecture(
    name: str,
    build: Callable[..., nn.Module],
    doc: str,
    *,
    img_size: int = 224,
    num_classes: int = 1000,
    classifier: str = "head",
    first_conv: str | None = None,
    feature_cls: str = "getter",
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

    taken = inspect.signature(build).parameters.values()
    pools = any(p.name == "global_pool" or p.kind is p.VAR_KEYWORD for p in taken)

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # timm passes on the pooling that an export notes.
        pooling = None if pools else kwargs.pop("global_pool", None)
        model = build_model_with_cfg(
            build,
            name,
            pretrained,
            feature_cfg={"out_indices": (-1,), "feature_cls": feature_cls},
            kwargs_filter=None if pools else ("global_pool",),
            **{**defaults, **kwargs},
        )
        built_in = getattr(model, "global_pool", pooling)
        if pooling and pooling != built_in:
            raise ConfigError(
                f"{name} pools by {built_in}, not by {pooling}: leave global_pool out"
            )
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = doc
    NAMES.append(name)
    register_model(entry_point)


def sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a side, or of both."""
    if isinstance(img_size, int):
        return img_size, img_size
    height, width = img_size
    return height, width


def image_sides(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return height and width in pixels, checked against the patch.

    Raises:
        ConfigError: If the patch does not divide them; the message says which would.
    """
    height, width = sides(img_size)
    if height % patch_size or width % patch_size:
        common = math.gcd(height, width)
        fits = [p for p in range(1, common // 2 + 1) if common % p == 0]
        raise ConfigError(
            f"patches of {patch_size} px do not divide images of {height} x {width} px; "
            f"{', '.join(map(str, fits))} would"
        )
    return height, width


def default_patch(img_size: int | Sequence[int], *, tokens: int = 8, most: int = 16) -> int:
    """Return the largest patch that divides an image into ``tokens`` or more a side.

    Args:
        img_size: Side, or height and width, in pixels.
        tokens: Patches along the shorter side at least; 2 px is taken where that leaves fewer.
        most: Largest patch, in pixels.
    """
    height, width = sides(img_size)
    limit = min(most, max(2, min(height, width) // tokens))
    common = math.gcd(height, width)
    return max((p for p in range(1, limit + 1) if common % p == 0), default=1)
