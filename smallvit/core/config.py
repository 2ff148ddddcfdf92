"""Config primitives: frozen dataclasses read strictly from named layers of plain values.

A config is a frozen dataclass of sections. Its values come from layers (a recipe, the
environment, the command line), each checked by itself so that an error can name the file, the
key, the value and the nearest valid name; later layers win. A section may be one of several
dataclasses: its key ``name`` says which, and each has its own name as the default of that field.
"""

import dataclasses
import math
import operator
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from smallvit.core.errors import ConfigError, suggest

ConfigT = TypeVar("ConfigT")


LONGEST_SHOWN = 60  # of a value in a message
# Settings that each stage had once, and the section that has them for all.
MOVED = {"allow_leak": "data"}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of every number of a tuple: ``Annotated[float, Range(gt=0)]``."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __str__(self) -> str:
        return " and ".join(f"{SIGNS[name]} {bound:g}" for name, bound in self._bounds().items())

    def admits(self, value: float) -> bool:
        """Tell whether ``value`` lies inside the bounds."""
        return all(getattr(operator, name)(value, bound) for name, bound in self._bounds().items())

    def _bounds(self) -> dict[str, float]:
        return {name: bound for name, bound in vars(self).items() if bound is not None}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One origin of values.

    Attributes:
        source: Name for error messages: a file, or ``"command line"``.
        values: Nested mapping, section to key to value.
    """

    source: str
    values: Mapping[str, Any]


def resolve(cls: type[ConfigT], layers: Sequence[Layer]) -> ConfigT:
    """Build ``cls`` from ``layers``, the last one winning.

    Raises:
        ConfigError: On the first bad key or value, in one line.
    """
    if errors := find_errors(cls, layers):
        raise ConfigError(errors[0])
    return _build(cls, _join([_move(cls, layer) for layer in layers]))


def find_errors(cls: type, layers: Sequence[Layer]) -> list[str]:
    """Return one line for every key or value of ``layers`` that ``cls`` does not take."""
    layers = [_move(cls, layer) for layer in layers]
    merged = _join(layers)
    errors = [line for each in layers for line in _check(cls, each.values, each.source, "", merged)]
    if errors:
        return errors
    faults = []
    for number, layer in enumerate(layers, 1):
        try:
            _build(cls, _join(layers[:number]))
            faults.append(None)
        except ConfigError as error:
            faults.append(f"{layer.source}: {error}")
    # Several values together are at fault: blame the layer that brought the last of them.
    return [next(filter(None, faults))] if faults and faults[-1] else []


def _join(layers: Sequence[Layer]) -> dict[str, Any]:
    """Merge the values of layers; those that are no mapping are faults of their own."""
    return reduce(merge, (each.values for each in layers if isinstance(each.values, Mapping)), {})


def _move(cls: type, layer: Layer) -> Layer:
    """Return a layer whose ``MOVED`` settings are where they are today, on if any of them was."""
    if not isinstance(layer.values, Mapping):
        return layer
    known = {f.name for f in dataclasses.fields(cls)}
    values = dict(layer.values)
    for key, home in MOVED.items():
        for name, section in layer.values.items():
            if home not in known or name == home:
                continue
            there = values.get(home, {})
            if isinstance(section, Mapping) and key in section and isinstance(there, Mapping):
                values[name] = {each: section[each] for each in section if each != key}
                values[home] = {**there, key: there.get(key) or section[key]}
    return dataclasses.replace(layer, values=values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a value of ``over`` wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"optim.lr": 1.0}`` into ``{"optim": {"lr": 1.0}}``."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        for key in reversed(path.split(".")):
            value = {key: value}
        nested = merge(nested, value)
    return nested


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every setting by its dotted name: ``optim.lr`` of ``{"optim": {"lr": 1.0}}``."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def paths(cls: type) -> Iterable[str]:
    """Yield the dotted name of every setting of a config."""
    for key, hint in get_type_hints(cls, include_extras=True).items():
        sections = _sections(hint)
        if not sections:
            yield key
        for path in dict.fromkeys(path for kind in sections.values() for path in paths(kind)):
            yield f"{key}.{path}"


def to_plain(value: Any) -> Any:
    """Turn a config into what YAML and JSON can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def show(value: Any) -> str:
    """Return a value as a message gives it: on one line, and not all of a long one."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes out no integer beyond its limit of digits
        shown = "a number of thousands of digits"
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."


def _suggest(value: Any, known: Iterable[str]) -> str:
    return suggest(value if isinstance(value, str) else show(value), known)


def _check(
    cls: type, values: Any, source: str, prefix: str, merged: Mapping[Any, Any]
) -> Iterable[str]:
    """Yield the faults of one layer; ``merged`` is the same section of all layers together."""
    if not isinstance(values, Mapping):
        what = prefix.rstrip(".") or "the recipe"
        yield f"{source}: {what} must be a mapping, got {show(values)}"
        return
    hints = get_type_hints(cls, include_extras=True)
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            what = f"unknown key {show(path)} (value {show(value)})"
            yield f"{source}: {what}{suggest(str(key), hints, below=paths(cls))}"
        elif sections := _sections(hints[key]):
            part = merged.get(key)
            part = part if isinstance(part, Mapping) else {}
            name = part.get("name")
            own = value.get("name", name) if isinstance(value, Mapping) else name
            if len(sections) > 1 and own is not None and own not in list(sections):
                yield f"{source}: {path}.name: cannot be {show(own)}{_suggest(own, sections)}"
                continue
            named = part.get("name", own)
            named = named if isinstance(named, str) else None
            section = sections.get(named, next(iter(sections.values())))
            yield from _check(section, value, source, f"{path}.", part)
        else:
            try:
                _convert(hints[key], value)
            except ConfigError as error:
                yield f"{source}: {path}: {error}"


def _build(cls: type[ConfigT], values: Mapping[str, Any], base: ConfigT | None = None) -> ConfigT:
    """Build a section; what ``values`` leaves out is that of ``base`` or else the class's own."""
    hints = get_type_hints(cls, include_extras=True)
    arguments: dict[str, Any] = {} if base is None else {key: getattr(base, key) for key in hints}
    for key, hint in hints.items():
        if key not in values:
            continue
        sections = _sections(hint)
        if not sections:
            arguments[key] = _convert(hint, values[key])
            continue
        settings = values[key] or {}
        standing = arguments.get(key, _default(cls, key))
        section = sections.get(settings.get("name"), type(standing))
        # The settings of one kind of section say nothing of those of another.
        standing = standing if type(standing) is section else None
        arguments[key] = _build(section, settings, standing)
    return cls(**arguments)


def _sections(hint: Any) -> dict[Any, type]:
    """Return the dataclasses that a field may hold, by name; one alone has no name."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {None: hint}
    if get_origin(hint) in (Union, types.UnionType):
        kinds = get_args(hint)
        if all(isinstance(kind, type) and dataclasses.is_dataclass(kind) for kind in kinds):
            return {_default(kind, "name"): kind for kind in kinds}
    return {}


def _default(cls: Any, key: str) -> Any:
    """Return the default of a field of a dataclass."""
    (field,) = (field for field in dataclasses.fields(cls) if field.name == key)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _convert(hint: Any, value: Any) -> Any:
    """Convert a plain value to ``hint`` without guessing: ``"3"`` is no integer, 1 no boolean."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = _convert(arguments[0], value)
        for bounds in (item for item in arguments[1:] if isinstance(item, Range)):
            numbers = converted if isinstance(converted, tuple) else (converted,)
            if any(number is not None and not bounds.admits(number) for number in numbers):
                raise ConfigError(f"must be {bounds}, got {show(value)}")
        return converted
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ConfigError(f"cannot be {show(value)}{_suggest(value, map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value)
    return _convert_scalar(hint, value)


def _convert_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"must be a list, got {show(value)}")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(f"must have {len(arguments)} entries, got {show(value)}")
    return tuple(_convert(inner, item) for inner, item in zip(arguments, value, strict=True))


def _convert_scalar(hint: type, value: Any) -> Any:
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and not isinstance(value, bool):
        # PyYAML reads 1e-3 as a string, since YAML 1.1 wants a dot in it.
        with suppress(TypeError, ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    elif type(value) is hint:
        return value
    kind = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a string"}
    raise ConfigError(f"must be {kind.get(hint, 'a path')}, got {show(value)}")
