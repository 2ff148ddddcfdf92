"""Weights of one architecture, fitted to a model of it for other images, patches or classes.

Shapes in this file:
    T    positions: class token, if it has one, then patch tokens
    D    embed dim
"""

import math
from collections.abc import Iterable, Mapping

from jaxtyping import Float
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.convert.rules import Weights, mismatches, window_sides

MOST_LISTED = 20  # misfits of one message


def adapt(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    *,
    grid: tuple[int, int] | None = None,
    same_classes: bool = True,
) -> tuple[Weights, list[str]]:
    """Fit weights of one architecture to a model of it for other images, patches or classes.

    Positions are resampled (bicubic, antialiased), kernels that embed patches resampled so that
    they see an enlarged patch as they saw the patch, relative positions resized to the window.
    A classifier of other classes is left as the model has it.

    Args:
        weights: By the model's names.
        model: What they are for.
        grid: Token grid that the weights' positions are for; ``None`` takes it as square.
        same_classes: Whether the classes are the same where their number is.

    Returns:
        Weights to load with ``strict=False``: all names of the model but those of classifiers that
        stay fresh. And one line for each that was resized or not loaded.

    Raises:
        ConfigError: If anything else differs; the message lists names and shapes.

    Source:
        Beyer et al., 2023, FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4, for the
        kernels; timm's functions for all three.
    """
    own = model.state_dict()
    heads = classifier_names(model)
    adapted: Weights = {}
    notes = []
    for name, value in weights.items():
        wanted = own.get(name)
        if name.startswith(heads) and (wanted is None or _other_classes(value, wanted)):
            has = "no such classifier" if wanted is None else f"{len(wanted)} classes"
            notes.append(f"{name} not loaded: {len(value)} classes, the model has {has}")
            continue
        if name.startswith(heads) and not same_classes:
            notes.append(f"{name} not loaded: trained for other classes")
            continue
        if wanted is not None:
            value, how = _fit(name, value, wanted, model, grid)
            notes += [f"{name} {how}"] if how else []
        adapted[name] = value
    left = {
        name: value for name, value in own.items() if name in adapted or not name.startswith(heads)
    }
    wrong = mismatches(adapted, left)
    if wrong:
        more = f"; and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
        raise ConfigError(
            f"the weights do not fit the model: {'; '.join(wrong[:MOST_LISTED])}{more}"
        )
    fresh = [name for name in own if name not in weights]
    return adapted, [*notes, *(f"{name} not loaded: not in the weights" for name in fresh)]


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return how the names of a timm model's classifiers start."""
    given = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = (given,) if isinstance(given, str) else tuple(given)
    return tuple(f"{name}." for name in (*names, "token_head"))


def position_grid(model: nn.Module, name: str = "pos_embed") -> tuple[int, int] | None:
    """Return the token grid that a model's learned or fixed positions are for, if it has one."""
    owner = model.get_submodule(name.rpartition(".")[0])
    for holder in (owner, getattr(model, "patch_embed", None)):
        size = getattr(holder, "grid_size", None)
        if size is not None:
            return int(size[0]), int(size[1])
    return None


def _fit(
    name: str, value: Tensor, wanted: Tensor, model: nn.Module, grid: tuple[int, int] | None
) -> tuple[Tensor, str]:
    """Resize one of the weights where that has a meaning, and say how."""
    same_width = value.shape[-1:] == wanted.shape[-1:]
    if name.endswith("pos_embed") and value.ndim == wanted.ndim == 3 and same_width:
        return _fit_positions(value, wanted, position_grid(model, name), grid)
    if value.shape == wanted.shape:
        return value, ""
    same_channels = value.ndim == wanted.ndim == 4 and value.shape[:2] == wanted.shape[:2]
    if name.endswith("patch_embed.proj.weight") and same_channels:
        resampled = resample_patch_embed(value, list(wanted.shape[2:]))
        return resampled, f"resampled from {_by(value.shape[2:])} to {_by(wanted.shape[2:])}"
    if name.endswith("relative_position_bias_table") and same_width:
        owner = model.get_submodule(name.rpartition(".")[0])
        window = getattr(owner, "window_size", None) or window_sides(wanted)
        if math.isqrt(len(value)) ** 2 == len(value):  # of a square window
            table = resize_rel_pos_bias_table_simple(value, window, tuple(wanted.shape))
            return table, f"resized from {len(value)} to {len(wanted)} relative positions"
    return value, ""


def _fit_positions(
    value: Float[Tensor, "1 T1 D"],
    wanted: Float[Tensor, "1 T2 D"],
    new: tuple[int, int] | None,
    old: tuple[int, int] | None,
) -> tuple[Tensor, str]:
    if new is None:
        return value, ""
    num_prefix = wanted.shape[1] - math.prod(new)
    if old is None:
        same = value.shape == wanted.shape
        side = math.isqrt(value.shape[1] - num_prefix)
        old = new if same else (side, side)
    if old == new or math.prod(old) + num_prefix != value.shape[1]:
        return value, ""
    resampled = resample_abs_pos_embed(
        value, new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix
    )
    return resampled, f"resampled from {_by(old)} to {_by(new)} tokens"


def _other_classes(value: Tensor, wanted: Tensor) -> bool:
    return value.shape[1:] == wanted.shape[1:] and len(value) != len(wanted)


def _by(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))
