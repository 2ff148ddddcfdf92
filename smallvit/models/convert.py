"""Public weights of the papers, renamed to this toolkit's models; weights adapted to other sizes.

Nothing goes by position: every name is mapped by a rule, and what fits nowhere is an error.

Shapes in this file:
    T    positions: class token, if it has one, then patch tokens
    D    embed dim
    N    patch tokens
    P    numbers in a patch (P = p * p * c)
    p    side of a patch
    c    colours
    o i  output and input channels
    k    side of a kernel
    R    relative positions of a window
    n    attention heads
"""

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from smallvit.core.errors import ConfigError, DataError, UnknownNameError
from smallvit.models.gani import gani_architecture
from smallvit.models.lvvit import VARIANTS as LVVIT
from smallvit.models.registry import ALIASES, create_exported, unknown_model
from smallvit.models.t2t_vit import OTHERS, SIZES
from smallvit.models.tokens import AbstractBackbone

MOST_LISTED = 20  # misfits of one message

Weights = dict[str, Tensor]

# Where checkpoints keep the weights, best first: a teacher and an average are what gets evaluated.
CONTAINERS = (
    "teacher",
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "student",
)
WRAPPERS = ("module.", "backbone.")
NUMPY_CORES = ("core", "_core")  # of NumPy 1 and 2


def _harmless() -> list[Any]:
    """Return what such files hold beside tensors and plain values.

    The options of a command line (Gani et al., timm), and rates that NumPy computed, which the
    optimizer of stage 1 of Gani et al. keeps (train_ssl.py: ``param_group["lr"] =
    lr_schedule[it]``).
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in NUMPY_CORES),
        np.dtype,
        type(np.dtype(np.float64)),
    ]


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that match; a name that no rule matches stays.

    Attributes:
        pattern: Regular expression of the whole name.
        name: Its new name, a template for the match or a function of it; with ``[0]`` and ``[1]``
            at their ends, two are put together. ``None`` leaves the weights out.
        change: How the values are laid out anew.
        why: Why they are left out.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str] | None
    change: Callable[[Tensor], Tensor] | None = None
    why: str = ""

    def rename(self, match: re.Match[str]) -> str | None:
        """Return the new name of one that matched."""
        if self.name is None or isinstance(self.name, str):
            return self.name and match.expand(self.name)
        return self.name(match)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One architecture of a public repository, told by its names.

    Attributes:
        layout: Repository, as ``--layout`` takes it.
        marks: Patterns that each match one of its names or more.
        lacks: Patterns that match none.
        rules: Tried in this order.
        describe: Finds the model that fits renamed weights, from them and the name given, if any.
    """

    layout: str
    marks: tuple[str, ...]
    describe: Callable[[Weights, str | None], "Target"]
    lacks: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Target:
    """The model that weights are for.

    Attributes:
        name: timm's name.
        arguments: All arguments that build it.
        notes: What the weights do not hold and had to be supposed.
    """

    name: str
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model with the weights of a checkpoint.

    Attributes:
        layout: Repository that they come from.
        name: timm's name of the model.
        arguments: All arguments that build it anew.
        backbone: The model.
        num_mapped: Weights that it took over.
        notes: What was left out, and what was supposed, one line each.
    """

    layout: str
    name: str
    arguments: dict[str, Any]
    backbone: AbstractBackbone
    num_mapped: int
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> tuple[Weights, list[str]]:
    """Read the weights of a ``.pth``, ``.pt`` or ``.safetensors`` file, and nothing that runs.

    Args:
        path: File.

    Returns:
        Weights without the containers and prefixes that training put around them, and one line
        for each part of the file that was left out.

    Raises:
        DataError: If the file is missing or broken, holds code, no weights, or weights that are
            not finite.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Of other pickles torch warns first, and refuses them then.
            with torch.serialization.safe_globals(_harmless()), _no_warnings():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise DataError(
            f"{path} is refused: it is no checkpoint or holds code{what}; save its state_dict alone"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name a file of weights"
        ) from error
    except Exception as error:  # a broken pickle stream raises nearly anything
        raise DataError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is cut short, or "
            "no .pth, .pt or .safetensors file; fetch it again, or name another"
        ) from error
    notes: list[str] = []
    while isinstance(content, Mapping) and not _is_weights(content):
        key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        others = [str(other) for other in content if other != key]
        if others:
            notes.append(f"read {key!r} of the file; left out {', '.join(others)}")
        content = content[key]
    if not (isinstance(content, Mapping) and content and _is_weights(content)):
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        holds = names or ("nothing" if isinstance(content, Mapping) else type(content).__name__)
        raise DataError(
            f"{path} holds no weights under a name known for them; it holds {holds}: write its "
            "weights alone to a file (torch.save of the state_dict)"
        )
    weights = _unwrap(content)
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise DataError(
            f"{path} holds NaN or infinite values: {', '.join(broken)}: its training diverged, "
            "take an earlier checkpoint"
        )
    return weights, notes


def convert(weights: Weights, *, layout: str | None = None, model: str | None = None) -> Converted:
    """Build the model that public weights are for, and fill it by name.

    Args:
        weights: As ``read_checkpoint`` returns them.
        layout: Repository they come from; ``None`` tells it by the names.
        model: timm's name of the model; ``None`` tells it by the shapes.

    Returns:
        The filled model, and notes on what was left out and supposed.

    Raises:
        UnknownNameError: If ``layout`` or ``model`` is unknown.
        ConfigError: If no layout fits, or names or shapes differ from the model's.

    Source:
        Names and shapes: hananshafi/vits-for-small-scale-datasets@43a7493, models;
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py; yitu-opensource/T2T-ViT@0f63dc9,
        models; aanna0701/SPT_LSA_ViT@54bd796, models.
    """
    model = ALIASES.get(model, model) if model is not None else None
    if model is not None and not timm.is_model(model):
        raise unknown_model(model)
    source = find_source(weights, layout)
    try:
        renamed, notes = rename(weights, (*DROPPED, *source.rules))
        target = source.describe(renamed, model)
        backbone = _create(target, source, model)
    except KeyError as error:
        raise ConfigError(f"the weights lack {error.args[0]}") from error
    except (IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"the weights have the names of layout {source.layout}, but not its shapes "
            f"({' '.join(str(error).split())})"
        ) from error
    wrong = mismatches(renamed, backbone.model.state_dict())
    if wrong:
        other = "" if model is None else ": leave --model out, or name another"
        raise ConfigError(f"the weights do not fit {target.name}: {'; '.join(wrong)}{other}")
    backbone.model.load_state_dict(renamed)
    return Converted(
        layout=source.layout,
        name=target.name,
        arguments=target.arguments,
        backbone=backbone,
        num_mapped=len(weights) - len(notes),
        notes=[*notes, *target.notes],
    )


def _create(target: Target, source: Source, model: str | None) -> AbstractBackbone:
    try:
        return create_exported(target.name, target.arguments)
    except ConfigError as error:
        if model is None:
            raise
        raise ConfigError(
            f"--model {model} is not what weights of layout {source.layout} are for: leave --model "
            "out, or name one of that layout"
        ) from error


def find_source(weights: Weights, layout: str | None = None) -> Source:
    """Find the architecture whose names the weights have.

    Raises:
        UnknownNameError: If ``layout`` is unknown.
        ConfigError: If none fits; the message says which are known.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    for source in SOURCES:
        if (
            layout in (None, source.layout)
            and all(_any_match(mark, weights) for mark in source.marks)
            and not any(_any_match(mark, weights) for mark in source.lacks)
        ):
            return source
    first = ", ".join(sorted(weights)[:3])
    what = f"the weights' names ({first}, ...) are those of no network of"
    if layout is not None:
        raise ConfigError(f"{what} {layout}: leave --layout out to tell it by the names")
    raise ConfigError(f"{what} {', '.join(LAYOUTS)}")


def rename(weights: Weights, rules: Iterable[Rule]) -> tuple[Weights, list[str]]:
    """Apply to each name the first rule that matches it.

    Returns:
        Renamed weights, and one line for each that was left out.

    Raises:
        ConfigError: If two names become one.
    """
    rules = tuple(rules)
    renamed: Weights = {}
    notes = []
    for old, value in weights.items():
        new = old
        for rule in rules:
            match = re.fullmatch(rule.pattern, old)
            if match is not None:
                new = rule.rename(match)
                value = value if rule.change is None else rule.change(value)
                if new is None:
                    notes.append(f"left out {old} {_shape(value)}: {rule.why}")
                break
        if new is None:
            continue
        if new in renamed:
            raise ConfigError(f"{old} and another of the weights would both become {new}")
        renamed[new] = value
    for first in [name for name in renamed if name.endswith("[0]")]:
        second = first.replace("[0]", "[1]")
        if second in renamed:
            parts = [renamed.pop(first), renamed.pop(second)]
            renamed[first.removesuffix("[0]")] = torch.cat(parts)
    return renamed, notes


def mismatches(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """List each name that only one side has, and each of two shapes, with the shapes.

    Names that differ by the number of a block alone are one line, with ``*`` for the number.
    """
    wrong = [
        f"{name} {_shape(weights[name])} is not in the model" for name in weights.keys() - wanted
    ]
    wrong += [
        f"{name} {_shape(wanted[name])} is not in the weights" for name in wanted.keys() - weights
    ]
    wrong += [
        f"{name} is {_shape(value)}, needed {_shape(wanted[name])}"
        for name, value in weights.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    # What is wrong alike in many blocks is said once.
    alike: dict[str, list[str]] = {}
    for line in sorted(wrong):
        name, _, rest = line.partition(" ")
        alike.setdefault(f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} {rest}", []).append(line)
    return [
        lines[0] if len(lines) == 1 else f"{line} ({len(lines)} times)"
        for line, lines in alike.items()
    ]


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
    ours = model.state_dict()
    heads = classifier_names(model)
    adapted: Weights = {}
    notes = []
    for name, value in weights.items():
        wanted = ours.get(name)
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
        name: value for name, value in ours.items() if name in adapted or not name.startswith(heads)
    }
    wrong = mismatches(adapted, left)
    if wrong:
        more = f"; and {len(wrong) - MOST_LISTED} more" if len(wrong) > MOST_LISTED else ""
        raise ConfigError(
            f"the weights do not fit the model: {'; '.join(wrong[:MOST_LISTED])}{more}"
        )
    fresh = [name for name in ours if name not in weights]
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
        window = getattr(owner, "window_size", None) or _window(wanted)
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


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_weights(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in content) and all(
        isinstance(value, Tensor) for value in content.values()
    )


def _unwrap(weights: Mapping[str, Tensor]) -> Weights:
    """Take off the prefixes of wrappers, such as DistributedDataParallel's."""
    unwrapped: Weights = {}
    for name, value in weights.items():
        short = name
        for prefix in WRAPPERS:
            short = short.removeprefix(prefix)
        if short in unwrapped:
            raise DataError(f"the file holds two weights {short}, one of them as {name}")
        unwrapped[short] = value
    return unwrapped


def _any_match(pattern: str, weights: Weights) -> bool:
    return any(re.fullmatch(pattern, name) for name in weights)


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def _by(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))


def _window(table: Float[Tensor, "R n"]) -> tuple[int, int]:
    """Return the sides of the square window that has a table's relative positions."""
    side = (math.isqrt(len(table)) + 1) // 2
    return side, side


def _patch_kernel(weight: Float[Tensor, "D P"]) -> Float[Tensor, "D c p p"]:
    """Turn a linear layer over patches, by row, column and colour, into a convolution."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()


def _sizes(weights: Weights) -> dict[str, Any]:
    """Return the sizes that all transformers have."""
    embed_dim = weights["cls_token"].shape[-1]
    return {
        "embed_dim": embed_dim,
        "depth": _count(r"blocks\.(\d+)\..*", weights),
        "mlp_ratio": weights["blocks.0.mlp.fc2.weight"].shape[1] / embed_dim,
        "num_classes": _classes(weights, "head.weight"),
    }


def _count(pattern: str, weights: Weights) -> int:
    found = (re.fullmatch(pattern, name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _classes(weights: Weights, name: str) -> int:
    return len(weights[name]) if name in weights else 0


def _image(weights: Weights, patch_size: int, *, num_prefix: int, name: str = "pos_embed") -> int:
    """Return the side of the square images that the positions are for."""
    num_patches = weights[name].shape[1] - num_prefix
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ConfigError(f"{name} is for {num_patches} patches, which make no square grid")
    return side * patch_size


def _gani_vit(weights: Weights, model: str | None) -> Target:
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    name, arguments = gani_architecture(
        "gani_vit", img_size=_image(weights, patch_size, num_prefix=1), patch_size=patch_size
    )
    note = f"supposed {arguments['num_heads']} attention heads, the paper's: weights do not tell"
    return Target(model or name, arguments | _sizes(weights), (note,))


def _gani_cait(weights: Weights, model: str | None) -> Target:
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    name, arguments = gani_architecture(
        "gani_cait", img_size=_image(weights, patch_size, num_prefix=0), patch_size=patch_size
    )
    sizes = _sizes(weights)
    hidden = weights["blocks_token_only.0.mlp.fc1.weight"].shape[0]
    own = {
        "num_heads": len(weights["blocks.0.attn.proj_l.weight"]),
        "depth_token_only": _count(r"blocks_token_only\.(\d+)\..*", weights),
        "mlp_ratio_token_only": hidden / sizes["embed_dim"],
    }
    return Target(model or name, arguments | sizes | own)


def _gani_swin(weights: Weights, model: str | None) -> Target:
    embed_dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
    tables = _tables(weights)
    # A window is cut to the map that its stage was built for. The authors' fine-tuned networks for
    # 64 px were built for 32 px, so that the last map, and the window with it, is 2 cells wide.
    image_size = _window(tables[-1])[0] * 2 ** (len(tables) - 1) * patch_size
    name, arguments = gani_architecture("gani_swin", img_size=image_size, patch_size=patch_size)
    sizes = {"embed_dim": embed_dim, **_stages(weights, embed_dim)}
    note = f"supposed images of {image_size} px, the least for these windows: weights do not tell"
    return Target(model or name, arguments | sizes, (note,))


def _lvvit(weights: Weights, model: str | None) -> Target:
    patch_size = 2 * weights["patch_embed.proj.weight"].shape[-1]
    sizes = _sizes(weights)
    arguments = {
        "img_size": _image(weights, patch_size, num_prefix=1),
        "patch_size": patch_size,
        "stem_width": len(weights["patch_embed.conv1.weight"]),
        "token_head": "token_head.weight" in weights,
    }
    return Target(model or _named(LVVIT, sizes), arguments | sizes)


def _t2t_vit(weights: Weights, model: str | None) -> Target:
    patch_size = 16 if len(weights["patch_embed.attention1.norm1.weight"]) == 3 * 7 * 7 else 8
    if "patch_embed.attention2.norm1.weight" not in weights:
        patch_size = 4
    images = {
        "img_size": _image(weights, patch_size, num_prefix=1),
        "patch_size": patch_size,
        "num_classes": _classes(weights, "head.weight"),
    }
    if "blocks.0.dense_linear.weight" in weights:
        return Target(model or "t2t_vit_dense", images)
    sizes = images | _sizes(weights)
    if model is not None:
        return Target(model, sizes)
    if "blocks.0.attn.se_layer.fc.0.weight" in weights:
        return Target("t2t_vit_14_se", sizes)
    if "blocks.0.attn.cheap_operation_q.weight" in weights:
        return Target("t2t_vit_16_ghost", sizes)
    plain = {**SIZES, "14_wide": OTHERS["14_wide"]}
    name = _named({f"t2t_vit_{name}": values for name, values in plain.items()}, sizes)
    if "patch_embed.attention1.attn.qkv.weight" in weights:
        return Target(name.replace("t2t_vit_", "t2t_vit_t_"), sizes)
    note = "supposed the 6 heads of t2t_vit_14; --model t2t_vit_14_resnext has the same shapes"
    return Target(name, sizes, (note,) if name == "t2t_vit_14" else ())


def _sl_vit(weights: Weights, model: str | None) -> Target:
    if "patch_embed.proj.weight" in weights and "blocks.0.attn.temperature" not in weights:
        patch_size = weights["patch_embed.proj.weight"].shape[-1]
        images = {
            "img_size": _image(weights, patch_size, num_prefix=1),
            "patch_size": patch_size,
        }
        note = "supposed 12 attention heads, the paper's: weights do not tell"
        return Target(model or "lee_vit", images | _sizes(weights), (note,))
    patch_size = _shifted_patch(weights, "ViT")
    own = {
        "img_size": _image(weights, patch_size, num_prefix=1),
        "patch_size": patch_size,
        "num_heads": len(weights["blocks.0.attn.temperature"]),
    }
    return Target(model or "sl_vit", own | _sizes(weights))


def _sl_cait(weights: Weights, model: str | None) -> Target:
    patch_size = _shifted_patch(weights, "CaiT")
    num_heads = len(weights["blocks.0.attn.temperature"])
    own = {
        "img_size": _image(weights, patch_size, num_prefix=0),
        "patch_size": patch_size,
        "num_heads": num_heads,
        "head_dim": weights["blocks.0.attn.proj.weight"].shape[1] // num_heads,
        "depth_token_only": _count(r"blocks_token_only\.(\d+)\..*", weights),
    }
    return Target(model or "sl_cait_unmasked", own | _sizes(weights))


def _sl_swin(weights: Weights, model: str | None) -> Target:
    patch_size = _shifted_patch(weights, "Swin")
    name = "layers.0.downsample.pos_embed"
    embed_dim = weights[name].shape[-1]
    own = {
        "img_size": _image(weights, patch_size, num_prefix=0, name=name),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
    }
    return Target(model or "sl_swin", own | _stages(weights, embed_dim))


def _other_t2t_vit(weights: Weights, model: str | None) -> Target:
    raise ConfigError(
        "layout spt's T2T-ViT adds the normalised input in each attention once more: no model here "
        "does; t2t_vit_12 is the nearest to train anew"
    )


def _shifted_patch(weights: Weights, kind: str) -> int:
    """Return the patch of shifted patch tokenization: 3 colours of 5 images are in each.

    Raises:
        ConfigError: If the network has only one, or none, of SPT and LSA.
    """
    if "patch_embed.proj.linear.weight" not in weights or not _any_match(
        r".*\.attn\.temperature", weights
    ):
        raise ConfigError(
            f"a {kind} of layout spt that has not both shifted patch tokenization and locality "
            f"self-attention has no counterpart here; sl_{kind.lower()} has both"
        )
    return math.isqrt(weights["patch_embed.proj.linear.weight"].shape[1] // 15)


def _stages(weights: Weights, embed_dim: int) -> dict[str, Any]:
    """Return the sizes of a Swin's stages."""
    stages = range(_count(r"layers\.(\d+)\..*", weights))
    tables = _tables(weights)
    return {
        "depths": tuple(_count(rf"layers\.{i}\.blocks\.(\d+)\..*", weights) for i in stages),
        "num_heads": tuple(table.shape[1] for table in tables),
        "window_size": _window(tables[0])[0],
        "mlp_ratio": len(weights["layers.0.blocks.0.mlp.fc1.weight"]) / embed_dim,
        "num_classes": _classes(weights, "head.fc.weight"),
    }


def _tables(weights: Weights) -> list[Tensor]:
    """Return the relative position table of the first block of each stage."""
    stages = range(_count(r"layers\.(\d+)\..*", weights))
    return [weights[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]


def _named(known: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Any]) -> str:
    """Find a variant by width and blocks; how many heads it has goes with its name alone."""
    for name, values in known.items():
        if all(values[key] == sizes[key] for key in ("embed_dim", "depth")):
            return name
    raise ConfigError(
        f"{sizes['depth']} blocks of width {sizes['embed_dim']} are none of {', '.join(known)}: "
        "say which with --model"
    )


def _next_stage(match: re.Match[str]) -> str:
    """Patches are merged at the end of a stage there, at the start of the next in timm."""
    return f"layers.{int(match[1]) + 1}.downsample.{match[2]}"


def _next_shifted(match: re.Match[str]) -> str:
    layer = {"1": "norm", "2": "reduction"}[match[2]]
    return f"layers.{int(match[1]) + 1}.downsample.{layer}.{match[3]}"


DROPPED = (
    Rule(r"(.*\.)?(attn_mask|relative_position_index)", None, why="follows from the window"),
    # Of Gani et al., utils/utils_ssl.py:34, and of DINO's own code, utils.py, MultiCropWrapper.
    Rule(r"(mlp)?head\.(mlp|last_layer)\..*", None, why="the projection head of stage 1"),
)
SPT_ENDS = (
    Rule(r"to_patch_embedding\.(?:0\.)?merging\.1\.(\w+)", r"patch_embed.proj.norm.\1"),
    Rule(r"to_patch_embedding\.(?:0\.)?merging\.2\.(\w+)", r"patch_embed.proj.linear.\1"),
    Rule(r"to_patch_embedding\.1\.weight", "patch_embed.proj.weight", _patch_kernel),
    Rule(r"to_patch_embedding\.1\.bias", "patch_embed.proj.bias"),
    Rule(r"pos_embedding", "pos_embed"),
    Rule(r"mlp_head\.0\.(\w+)", r"norm.\1"),
    Rule(r"mlp_head\.1\.(\w+)", r"head.\1"),
)
# Blocks of the ViT, and those of both kinds of the CaiT, after their own prefixes.
SPT_VIT = tuple(
    Rule(rf"transformer\.layers\.(\d+)\.{old}", rf"blocks.\1.{new}")
    for old, new in (
        (r"0\.norm\.(\w+)", r"norm1.\2"),
        (r"0\.fn\.scale", "attn.temperature"),
        (r"0\.fn\.to_qkv\.weight", "attn.qkv.weight"),
        (r"0\.fn\.to_out\.0\.(\w+)", r"attn.proj.\2"),
        (r"1\.norm\.(\w+)", r"norm2.\2"),
        (r"1\.fn\.net\.0\.(\w+)", r"mlp.fc1.\2"),
        (r"1\.fn\.net\.3\.(\w+)", r"mlp.fc2.\2"),
    )
)
SPT_CAIT = tuple(
    Rule(rf"{theirs}\.layers\.(\d+)\.{old}", rf"{ours}.\1.{new}", change)
    for theirs, ours in (
        ("patch_transformer", "blocks"),
        ("cls_transformer", "blocks_token_only"),
    )
    for old, new, change in (
        (r"0\.scale", "gamma_1", torch.flatten),
        (r"0\.fn\.norm\.(\w+)", r"norm1.\2", None),
        (r"0\.fn\.fn\.scale", "attn.temperature", None),
        # Theirs has heads before the mixing in rows, ours in columns.
        (r"0\.fn\.fn\.mix_heads_pre_attn", "attn.mix_logits", torch.t),
        (r"0\.fn\.fn\.mix_heads_post_attn", "attn.mix_weights", torch.t),
        (r"0\.fn\.fn\.to_q\.weight", "attn.qkv.weight[0]", None),
        (r"0\.fn\.fn\.to_kv\.weight", "attn.qkv.weight[1]", None),
        (r"0\.fn\.fn\.to_out\.0\.(\w+)", r"attn.proj.\2", None),
        (r"1\.scale", "gamma_2", torch.flatten),
        (r"1\.fn\.norm\.(\w+)", r"norm2.\2", None),
        (r"1\.fn\.fn\.net\.0\.(\w+)", r"mlp.fc1.\2", None),
        (r"1\.fn\.fn\.net\.3\.(\w+)", r"mlp.fc2.\2", None),
    )
)
SPT_SWIN = (
    Rule(r"patch_embed\.merging\.1\.(\w+)", r"patch_embed.proj.norm.\1"),
    Rule(r"patch_embed\.merging\.2\.(\w+)", r"patch_embed.proj.linear.\1"),
    Rule(r"absolute_pos_embed", "layers.0.downsample.pos_embed"),
    Rule(r"layers\.(\d+)\.downsample\.merging\.(1|2)\.(\w+)", _next_shifted),
    Rule(r"(.*\.attn)\.scale", r"\1.temperature"),
    Rule(r"head\.(\w+)", r"head.fc.\1"),
)

TABLE = r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"
SOURCES = (
    Source(
        layout="gani",
        marks=(r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.bias"),
        lacks=(r"blocks_token_only\..*",),
        describe=_gani_vit,
    ),
    Source(
        layout="gani",
        marks=(r"patch_embed\.1\.weight", r"blocks_token_only\.0\.gamma_1"),
        rules=(
            Rule(r"patch_embed\.1\.weight", "patch_embed.proj.weight", _patch_kernel),
            Rule(r"patch_embed\.1\.bias", "patch_embed.proj.bias"),
        ),
        describe=_gani_cait,
    ),
    Source(
        layout="gani",
        marks=(TABLE,),
        lacks=(r"absolute_pos_embed",),
        rules=(
            Rule(r"layers\.(\d+)\.downsample\.(.*)", _next_stage),
            Rule(r"head\.(\w+)", r"head.fc.\1"),
        ),
        describe=_gani_swin,
    ),
    Source(
        layout="lvvit",
        marks=(r"patch_embed\.conv1\.weight", r"blocks\.0\.attn\.qkv\.weight"),
        rules=(Rule(r"aux_head\.(\w+)", r"token_head.\1"),),
        describe=_lvvit,
    ),
    Source(
        layout="t2t",
        marks=(r"tokens_to_token\.project\.weight",),
        lacks=(r"tokens_to_token\.norm\.weight",),
        rules=(Rule(r"tokens_to_token\.(.*)", r"patch_embed.\1"),),
        describe=_t2t_vit,
    ),
    Source(
        layout="spt",
        marks=(r"transformer\.layers\.0\.0\.fn\.to_qkv\.weight",),
        rules=(*SPT_ENDS, *SPT_VIT),
        describe=_sl_vit,
    ),
    Source(
        layout="spt",
        marks=(r"patch_transformer\.layers\.0\.0\.fn\.fn\.to_q\.weight",),
        rules=(*SPT_ENDS, *SPT_CAIT),
        describe=_sl_cait,
    ),
    Source(
        layout="spt",
        marks=(TABLE, r"absolute_pos_embed"),
        rules=SPT_SWIN,
        describe=_sl_swin,
    ),
    Source(layout="spt", marks=(r"tokens_to_token\.norm\.weight",), describe=_other_t2t_vit),
)
LAYOUTS = tuple(dict.fromkeys(source.layout for source in SOURCES))
