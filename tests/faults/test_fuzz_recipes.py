"""Recipes and suites of any content: a value or one line, never anything else."""

import copy
import datetime
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallvit.core.config import find_errors, resolve, to_plain
from smallvit.core.errors import ConfigError, SmallViTError
from smallvit.core.run_folder import Run
from smallvit.leaderboard.suite import read_suite
from smallvit.runs.config import Recipe
from smallvit.runs.recipe import read_layer, recipes_root, run_values

EXAMPLES = 25
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BASES = [
    yaml.safe_load((recipes_root() / f"{name}.yaml").read_text())
    for name in ("digits/vit_tiny", "cifar10/cpu-demo", "suites/digits")
] + [to_plain(Recipe())]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**64), 10**4000, 1e308, math.nan, -math.inf, -0.0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "~", "~nobody/x", "a" * 5000, "../..", "timm:", "hf:", "scratch"]),
    st.binary(max_size=4),
    st.just(datetime.date(2020, 2, 2)),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.none()), st.none()),
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """List every (parent, key) below a tree of plain values."""
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    found = []
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


@st.composite
def changed_tree(draw: st.DrawFn) -> Any:
    """A recipe or suite some of whose values are gone, elsewhere, or of another kind."""
    tree = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(places(tree) or [({}, None)]))
        _, other = draw(st.sampled_from(places(tree) or [({}, None)]))
        match draw(st.sampled_from(["replace", "delete", "rename", "wrap"])):
            case "replace":
                parent[key] = draw(ODD)
            case "delete" if key is not None:
                del parent[key]
            case "rename" if isinstance(parent, dict) and key is not None:
                parent[other if draw(st.booleans()) else draw(st.text(max_size=5))] = parent[key]
            case "wrap" if key is not None:
                parent[key] = [parent[key]] if draw(st.booleans()) else {"name": parent[key]}
    return tree


@st.composite
def changed_text(draw: st.DrawFn) -> bytes:
    """A recipe's text with parts cut, repeated, or replaced by what YAML has a meaning for."""
    text = bytearray(yaml.safe_dump(draw(st.sampled_from(BASES)), sort_keys=False).encode())
    odd = st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b"0x" + b"f" * 5000, b"[" * 500, b"{a: " * 500, b"9" * 5000]),
        st.sampled_from(
            b"&a|*a|<<: *a|!!python/object/apply:os.system [x]|!!map x|!!set|? [a]\n|? {a: 1}\n"
            b"|---\n|!!int x|!!float x|!!timestamp x|2001-99-99|0b|0x_|!!binary =|: |- |[|{|}|\t"
            b'|!!omap|!!pairs|%YAML 9.9\n|\x00|\xff|1e999|.nan|190:20:30|\'|"|"\\0"'.split(b"|")
        ),
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 12))
        text[start : start + length] = draw(odd)
    return bytes(text)


def read_as_recipe(path: Path) -> None:
    layer = read_layer(path)
    errors = list(find_errors(Recipe, [layer]))
    assert all("\n" not in error for error in errors)
    if errors:
        with pytest.raises(ConfigError):
            resolve(Recipe, [layer])
    else:
        recipe = resolve(Recipe, [layer])
        again = yaml.safe_load(io.StringIO(yaml.safe_dump(to_plain(recipe))))
        assert to_plain(recipe) == again or "nan" in repr(again)


READERS: dict[str, Callable[[Path], object]] = {
    "recipe": read_as_recipe,
    "suite": lambda path: read_suite(str(path)),
    "run": lambda path: run_values(Run(path.parent), "finetune"),
}


def check(reader: str, folder: Path, content: bytes) -> None:
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    try:
        READERS[reader](path)
    except SmallViTError as error:
        line = str(error)
        assert 0 < len(line) < 20_000  # a value may be shown, not what it could be expanded to
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
@FUZZ
@given(tree=changed_tree())
def test_a_value_of_another_kind_is_read_or_refused_in_one_line(reader, tmp_path, tree):
    check(reader, tmp_path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())


@pytest.mark.parametrize("reader", READERS)
@FUZZ
@given(content=changed_text())
def test_any_text_is_read_or_refused_in_one_line(reader, tmp_path, content):
    check(reader, tmp_path, content)
