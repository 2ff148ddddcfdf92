"""What fell under altered files, kept: each raised something else than an error of one line."""

from typing import Any

import pytest
import torch

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.class_lists import order_classes
from smallvit.data.files.own import open_path
from smallvit.runs.recipe import find_recipe, read_layer
from smallvit.teachers.score_maps import ScoreMaps, read_score_maps
from smallvit.teachers.tensor_file import write_tensors

LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 50))]
)
TEXTS = {
    "a key that is a list": ("? [a]\n: b", "is no text"),
    "a key that is a number": ("1: 2", "the key 1 is no text: put it in quotes"),
    "a mapping that is none": ("a: !!map x", "expected a mapping"),
    "a date that is none": ("a: 2001-99-99", "month must be in 1..12"),
    "a truth value that is none": ("a: !!bool x", "no valid YAML"),
    "a number that is none": ("a: !!int x", "no valid YAML"),
    "an empty number": ("a: !!int ''", "no valid YAML"),
    "a time that is none": ("a: !!timestamp x", "no valid YAML"),
    "more digits than Python reads": (f"a: {'9' * 5000}", "no valid YAML"),
    "brackets in brackets": ("[" * 2000, "recursion"),
    "an alias of itself": ("a: &a [*a]", "an alias (*) is not read"),
    "2**50 values in as many lines": (LAUGHS, "an alias (*) is not read"),
    "code": ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "the home of nobody": ("data: {path: ~nobody-at-all/x}", "no path can be '~nobody-at-all/x'"),
    "a path too long": (f"data: {{path: {'a' * 5000}}}", "(File name too long)"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_recipe_that_fell_is_one_line(tmp_path, what):
    text, message = TEXTS[what]
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_layer(tmp_path / "recipe.yaml")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/recipe.yaml: ")
    assert message in line
    assert len(line.splitlines()) == 1


def test_a_name_longer_than_a_file_can_have_is_no_recipe():
    with pytest.raises(ConfigError, match="no recipe 'aaa"):
        find_recipe("a" * 5000)


def test_a_header_longer_than_a_cell_may_be_is_a_fault_of_its_line(tmp_path):
    (tmp_path / "table.csv").write_text("a" * 200_000)
    with pytest.raises(DataError, match="line 1: field larger than field limit"):
        open_path(tmp_path / "table.csv")


def test_labels_of_more_digits_than_python_reads_are_in_alphabetical_order():
    long = "1" * 5000
    assert order_classes(["9", long, "10"]) == ("10", long, "9")
    assert order_classes(["9", "10"]) == ("9", "10")


HEADER: dict[str, Any] = {
    "version": 1,
    "dataset": "d",
    "fingerprint": "f",
    "split_hash": "e",
    "class_names": ["a", "b", "c"],
    "grid": [2, 2],
    "image_size": 8,
    "teacher": "t",
    "teacher_hash": "d",
    "teacher_train_top1": 1.0,
    "teacher_val_top1": 0.5,
    "extra_data": "none",
}
HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "a grid without end": ({"grid": [float("inf"), 2]}, "grid: must be a whole number, got inf"),
    "a hash that is a number": ({"fingerprint": 3}, "fingerprint: must be a string, got 3"),
    "no hash": ({"split_hash": None}, "split_hash: must be a string, got None"),
    "classes in one word": ({"class_names": "abc"}, "class_names: must be a list, got 'abc'"),
    "an accuracy that is none": ({"teacher_val_top1": "x"}, "must be a finite number, got 'x'"),
    "a key that nothing reads": ({"colour": "red"}, "unknown key 'colour'"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_of_score_maps_that_fell_is_one_line(tmp_path, what):
    changes, message = HEADERS[what]
    maps = ScoreMaps.from_batch(torch.full((4, 3, 2, 2), 1 / 3), 2)
    write_tensors(tmp_path / "maps", maps.tensors, HEADER | changes)
    with pytest.raises(DataError) as caught:
        read_score_maps(tmp_path / "maps")
    assert message in str(caught.value)
    write_tensors(tmp_path / "maps", maps.tensors, HEADER)
    assert read_score_maps(tmp_path / "maps")[1].grid == (2, 2)
