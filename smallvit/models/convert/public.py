"""Building the model that public weights are for, and filling it by name."""

from dataclasses import dataclass, field
from typing import Any

import timm

from smallvit.core.errors import ConfigError, UnknownNameError, explained, reason
from smallvit.models.convert import gani, lvvit, spt, t2t
from smallvit.models.convert.rules import (
    Rule,
    Source,
    Target,
    Weights,
    any_match,
    mismatches,
    rename,
)
from smallvit.models.registry import ALIASES, create_exported, unknown_model
from smallvit.models.tokens import AbstractBackbone

DROPPED = (
    Rule(r"(.*\.)?(attn_mask|relative_position_index)", None, why="follows from the window"),
    # Of Gani et al., utils/utils_ssl.py:34, and of DINO's own code, utils.py, MultiCropWrapper.
    Rule(r"(mlp)?head\.(mlp|last_layer)\..*", None, why="the projection head of stage 1"),
)

SOURCES = (*gani.SOURCES, *lvvit.SOURCES, *t2t.SOURCES, *spt.SOURCES)
LAYOUTS = tuple(dict.fromkeys(source.layout for source in SOURCES))


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

    def misfit(error: Exception) -> str:
        if isinstance(error, KeyError):
            return f"the weights lack {error.args[0]}"
        return (
            f"the weights have the names of layout {source.layout}, but not its shapes "
            f"({reason(error)})"
        )

    kinds = (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError)
    with explained(misfit, *kinds, into=ConfigError):
        renamed, notes = rename(weights, (*DROPPED, *source.rules))
        target = source.describe(renamed, model)
        backbone = _create(target, source, model)
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
            and all(any_match(mark, weights) for mark in source.marks)
            and not any(any_match(mark, weights) for mark in source.lacks)
        ):
            return source
    first = ", ".join(sorted(weights)[:3])
    what = f"the weights' names ({first}, ...) are those of no network of"
    if layout is not None:
        raise ConfigError(f"{what} {layout}: leave --layout out to tell it by the names")
    raise ConfigError(f"{what} {', '.join(LAYOUTS)}")
