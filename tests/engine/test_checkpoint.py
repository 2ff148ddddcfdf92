import io
import os
from pathlib import Path

import pytest
import torch

from smallvit.core.errors import ConfigError, DataError, SmallViTError
from smallvit.engine import checkpoint
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "objective": {"weight": torch.arange(512.0), "count": torch.tensor(3)},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1}]},
    "result": {"step": 7, "best": {}, "wall_s": 1.5},
    "identity": {"settings": "{}"},
}


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    return path


def assert_same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_checkpoint_returns_what_was_written(path):
    state = load_checkpoint(path)
    assert state.pop("format") == 1
    assert state["result"] == STATE["result"]
    assert state["identity"] == STATE["identity"]
    assert_same(state["objective"], STATE["objective"])
    assert_same(state["optimizer"]["state"], STATE["optimizer"]["state"])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_dtype_is_sealed(tmp_path, dtype):
    tensors = {"x": torch.ones(3, dtype=dtype), "scalar": torch.ones((), dtype=dtype)}
    save_checkpoint(tmp_path / "last.pt", tensors | {"empty": torch.ones(0, dtype=dtype)})
    assert_same(load_checkpoint(tmp_path / "last.pt")["x"], tensors["x"])


def test_the_newer_checkpoint_takes_the_place_of_the_older(path):
    save_checkpoint(path, STATE | {"result": {"step": 8}})
    assert load_checkpoint(path)["result"] == {"step": 8}


def test_one_flipped_bit_in_the_middle_is_noticed(path):
    whole = bytearray(path.read_bytes())
    at = whole.index(torch.arange(512.0).numpy().tobytes()) + 1024
    whole[at] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"was altered|no whole checkpoint"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(path):
    """Whatever byte is hit: our own error, or the state as it was written."""
    whole, expected = path.read_bytes(), load_checkpoint(path)
    for at in range(5, len(whole), len(whole) // 150):
        altered = bytearray(whole)
        altered[at] ^= 0x10
        path.write_bytes(altered)
        try:
            state = load_checkpoint(path)
        except SmallViTError:
            continue
        assert_same(state["objective"], expected["objective"])
        assert state["result"] == expected["result"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="no whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.ones(1)}, torch.ones(2)])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(DataError, match="no whole checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"objective": Malicious(tmp_path / "trace")}, tmp_path / "last.pt")
    with pytest.raises(DataError, match="no whole checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "last.pt", weights_only=False)
    assert (tmp_path / "trace").exists()  # it would have run


def test_a_failed_write_leaves_the_previous_checkpoint(path, monkeypatch):
    def fill_the_disk(state: object, file: io.BufferedWriter) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fill_the_disk)
    with pytest.raises(DataError, match=r"cannot write .* \(No space left on device\)"):
        save_checkpoint(path, STATE | {"result": {"step": 8}})
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == [path]
    assert load_checkpoint(path)["result"]["step"] == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_explained(path):
    """Without a stand-in for torch.save: /dev/full takes the place of the partial file."""
    path.with_suffix(".part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot write .* \(No space left on device\)"):
        save_checkpoint(path, STATE | {"large": torch.zeros(100_000)})
    assert list(path.parent.iterdir()) == [path]
    assert load_checkpoint(path)["result"]["step"] == 7


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(DataError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "last.pt")


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save_checkpoint(tmp_path / "last.pt", STATE)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has format 2; this version reads 1"):
        load_checkpoint(tmp_path / "last.pt")
