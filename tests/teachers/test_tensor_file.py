from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from smallvit.core.errors import DataError
from smallvit.teachers.tensor_file import read_tensors, write_tensors

TENSORS = {
    "whole": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "half": torch.tensor([0.5, 0.25, 1.0]).half(),
}
HEADER = {"name": "a.b", "grid": [2, 3], "flip": True, "share": 0.25}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "file.safetensors", TENSORS, HEADER)
    return tmp_path / "file.safetensors"


def test_safetensors_reads_what_is_written(path):
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["grid"] == "[2, 3]"


def test_it_comes_back_and_nothing_lies_beside_it(path):
    tensors, header = read_tensors(path)
    assert header == HEADER
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert list(path.parent.iterdir()) == [path]


def test_the_same_content_is_the_same_bytes(path, tmp_path):
    for i in range(5):
        write_tensors(tmp_path / f"{i}.safetensors", TENSORS, HEADER)
        assert (tmp_path / f"{i}.safetensors").read_bytes() == path.read_bytes()


def test_a_flipped_bit_of_a_value_or_tensor_is_noticed(path):
    whole = path.read_bytes()
    # A file without a checksum, or without a header, is one of an earlier version.
    names = [(whole.index(name), len(name)) for name in (b"checksum", b"__metadata__")]
    spared = {place for first, length in names for place in range(first, first + length)}
    for place in set(range(len(whole))) - spared:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"no whole safetensors file|was altered"):
            read_tensors(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*none/x.safetensors \(No such file"):
        write_tensors(tmp_path / "none" / "x.safetensors", TENSORS, HEADER)
