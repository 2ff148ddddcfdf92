"""Rules that rename the weights of a repository, and what shapes tell of a network.

Nothing goes by position: every name is mapped by a rule, and what fits nowhere is an error.

Shapes in this file:
    D    embed dim
    P    numbers in a patch (P = p * p * c)
    p    side of a patch
    c    colours
    R    relative positions of a window
    n    attention heads
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smallvit.core.errors import ConfigError

Weights = dict[str, Tensor]

TABLE = r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"


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
                    notes.append(f"left out {old} {shape_of(value)}: {rule.why}")
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
        f"{name} {shape_of(weights[name])} is not in the model" for name in weights.keys() - wanted
    ]
    wrong += [
        f"{name} {shape_of(wanted[name])} is not in the weights" for name in wanted.keys() - weights
    ]
    wrong += [
        f"{name} is {shape_of(value)}, needed {shape_of(wanted[name])}"
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


def any_match(pattern: str, weights: Weights) -> bool:
    """Tell whether a pattern matches one of the names."""
    return any(re.fullmatch(pattern, name) for name in weights)


def shape_of(value: Tensor) -> str:
    """Return a shape as messages give it."""
    return str(tuple(value.shape))


def count_numbers(pattern: str, weights: Weights) -> int:
    """Count the blocks or stages that names number from 0 on; the pattern captures the number."""
    found = (re.fullmatch(pattern, name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def count_classes(weights: Weights, name: str) -> int:
    """Count the classes of a classifier; 0 where there is none."""
    return len(weights[name]) if name in weights else 0


def transformer_sizes(weights: Weights) -> dict[str, Any]:
    """Return the sizes that all transformers have."""
    embed_dim = weights["cls_token"].shape[-1]
    return {
        "embed_dim": embed_dim,
        "depth": count_numbers(r"blocks\.(\d+)\..*", weights),
        "mlp_ratio": weights["blocks.0.mlp.fc2.weight"].shape[1] / embed_dim,
        "num_classes": count_classes(weights, "head.weight"),
    }


def image_side(
    weights: Weights, patch_size: int, *, num_prefix: int, name: str = "pos_embed"
) -> int:
    """Return the side of the square images that the positions are for."""
    num_patches = weights[name].shape[1] - num_prefix
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ConfigError(f"{name} is for {num_patches} patches, which make no square grid")
    return side * patch_size


def image_sizes(weights: Weights, patch_size: int, **where: Any) -> dict[str, Any]:
    """Return the sides of images, as ``image_side`` finds them, and of patches."""
    return {"img_size": image_side(weights, patch_size, **where), "patch_size": patch_size}


def swin_sizes(weights: Weights, embed_dim: int) -> dict[str, Any]:
    """Return the sizes of a Swin's stages."""
    stages = range(count_numbers(r"layers\.(\d+)\..*", weights))
    tables = position_tables(weights)
    return {
        "depths": tuple(count_numbers(rf"layers\.{i}\.blocks\.(\d+)\..*", weights) for i in stages),
        "num_heads": tuple(table.shape[1] for table in tables),
        "window_size": window_sides(tables[0])[0],
        "mlp_ratio": len(weights["layers.0.blocks.0.mlp.fc1.weight"]) / embed_dim,
        "num_classes": count_classes(weights, "head.fc.weight"),
    }


def position_tables(weights: Weights) -> list[Tensor]:
    """Return the relative position table of the first block of each stage."""
    stages = range(count_numbers(r"layers\.(\d+)\..*", weights))
    return [weights[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]


def window_sides(table: Float[Tensor, "R n"]) -> tuple[int, int]:
    """Return the sides of the square window that has a table's relative positions."""
    side = (math.isqrt(len(table)) + 1) // 2
    return side, side


def patch_kernel(weight: Float[Tensor, "D P"]) -> Float[Tensor, "D c p p"]:
    """Turn a linear layer over patches, by row, column and colour, into a convolution."""
    side = math.isqrt(weight.shape[1] // 3)
    return weight.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()


def find_variant(known: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Any]) -> str:
    """Find a variant by width and blocks; how many heads it has goes with its name alone."""
    for name, values in known.items():
        if all(values[key] == sizes[key] for key in ("embed_dim", "depth")):
            return name
    raise ConfigError(
        f"{sizes['depth']} blocks of width {sizes['embed_dim']} are none of {', '.join(known)}: "
        "say which with --model"
    )
