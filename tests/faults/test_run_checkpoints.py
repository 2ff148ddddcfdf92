"""Checkpoints that a crash, a bad disk or somebody with a knife has been at."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from smallvit.cli.app import main
from smallvit.core.errors import DataError
from smallvit.core.run_folder import hold_folder
from smallvit.engine import checkpoint
from smallvit.engine.checkpoint import check_room, load_checkpoint, load_newest, save_checkpoint

# Each child of a fork saves steps 1 and 2, and is killed in the middle of saving step 3.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from smallvit.core import whole_file
from smallvit.engine.checkpoint import save_checkpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_in_the_middle(self, data):
    if self.tell() > 2000:
        die()
    return write(self, data)

def die_at_the_second(self, target, renamed=[]):
    renamed.append(target)
    return die() if len(renamed) == 2 else replace(self, target)

write, replace = whole_file._Writer.write, Path.replace
faults = {
    "half of the bytes": (whole_file._Writer, "write", die_in_the_middle),
    "not synced": (os, "fsync", die),
    "the older one set aside": (Path, "replace", die_at_the_second),
}
for place, fault in faults.items():
    folder = Path(sys.argv[1], place, "checkpoints")
    folder.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        for step in (1, 2, 3):
            if step == 3:
                setattr(*fault)
            state = {"x": torch.full((1000,), step), "result": {"step": step}}
            save_checkpoint(folder / "last.pt", state)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""

KILLED_RUN = """
import os, signal, sys
from smallvit.cli.app import main
from smallvit.core.whole_file import _Writer

write, files = _Writer.write, set()

def die_in_the_fourth(self, data):
    files.update({id(self)} if str(self.raw.name).endswith("last.part") else ())
    written = write(self, data)
    if len(files) == 4 and self.tell() > 10_000:
        self.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return written

_Writer.write = die_in_the_fourth
keep = []  # else the next file may have the id of one that is gone
init = _Writer.__init__
_Writer.__init__ = lambda self, *words: (keep.append(self), init(self, *words))[1]
main(sys.argv[1:])
"""


def test_a_checkpoint_that_is_killed_while_it_is_written_leaves_the_one_before(start, tmp_path):
    process = start(KILLED, str(tmp_path))
    assert process.wait(timeout=120) == 0, process.stderr.read()
    expected = {"half of the bytes": 2, "not synced": 2, "the older one set aside": 2}
    names = {}
    for place, step in expected.items():
        folder = tmp_path / place / "checkpoints"
        assert (folder / "last.part").exists()
        with hold_folder(folder.parent):  # as the next run does
            state, path = load_newest(folder)
        assert state["result"]["step"] == step
        assert torch.equal(state["x"], torch.full((1000,), step))
        assert not list(folder.glob("*.part"))
        names[place] = path.name
    assert names == {
        "half of the bytes": "last.pt",
        "not synced": "last.pt",
        "the older one set aside": "previous.pt",
    }


@pytest.mark.slow
@pytest.mark.exact
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_to_the_same_weights(
    command, start, whole, same_weights, tmp_path
):
    broken = tmp_path / "broken"
    process = start(KILLED_RUN, *command, "--out", str(broken))
    assert process.wait(timeout=120) == -signal.SIGKILL, process.stderr.read()
    assert (broken / "checkpoints" / "last.part").stat().st_size > 10_000
    assert load_checkpoint(broken / "checkpoints" / "last.pt")["result"]["step"] == 6
    assert main(["finetune", "--resume", str(broken)]) == 0
    assert same_weights(broken, whole)
    left = {path.name for path in (*broken.iterdir(), *(broken / "checkpoints").iterdir())}
    assert not left & {"last.part", "run.lock", "previous.pt", "broken.pt"}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    weights = load_checkpoint(path)["objective"]["student.model.head.weight"]
    data[data.index(weights.numpy().tobytes())] ^= 1
    path.write_bytes(data)


class Malicious:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def put_code_in(path: Path) -> None:
    torch.save({"objective": Malicious(path.parents[2] / "trace")}, path)


DAMAGE = {
    "cut short": cut_short,
    "no bytes": empty,
    "one bit": flip_a_bit,
    "code": put_code_in,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_last_checkpoint_is_said_and_the_one_before_continued(
    stopped, whole, same_weights, damage, capsys, tmp_path
):
    DAMAGE[damage](stopped / "checkpoints" / "last.pt")
    assert main(["finetune", "--resume", str(stopped)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    fault = "no checkpoint at" if damage == "gone" else f"{stopped}/checkpoints/last.pt"
    assert fault in said
    assert "checkpoints/previous.pt, the steps after 6 are repeated" in said
    assert same_weights(stopped, whole)
    assert not (tmp_path / "trace").exists()
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"last.pt", "best.pt"}


def test_without_a_whole_checkpoint_nothing_is_started_from_scratch(stopped, capsys):
    folder = stopped / "checkpoints"
    cut_short(folder / "last.pt")
    empty(folder / "previous.pt")
    before = (stopped / "metrics.jsonl").read_text()
    assert main(["finetune", "--resume", str(stopped)]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"smallvit: no checkpoint in {folder} is whole")
    assert "train the run again (--overwrite takes its folder)" in line
    assert (stopped / "metrics.jsonl").read_text() == before


def test_a_run_that_had_saved_and_lost_its_checkpoints_is_not_begun_again(stopped, capsys):
    shutil.rmtree(stopped / "checkpoints")
    before = (stopped / "metrics.jsonl").read_text()
    assert main(["finetune", "--resume", str(stopped)]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints holds no checkpoint, and the run had saved some: put one back" in said
    assert (stopped / "metrics.jsonl").read_text() == before


def test_a_run_that_never_saved_says_that_it_begins_again(stopped, whole, same_weights, capsys):
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "metrics.jsonl").unlink()
    assert main(["finetune", "--resume", str(stopped)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{stopped} holds no checkpoint: it starts at step 0" in said
    assert same_weights(stopped, whole)


def test_a_broken_checkpoint_never_takes_the_place_of_the_whole_one(tmp_path):
    """Else a crash during the next write would leave none."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "last.pt", {"result": {"step": step}})
    cut_short(tmp_path / "last.pt")
    state, path = load_newest(tmp_path)
    assert (state["result"]["step"], path.name) == (1, "previous.pt")
    save_checkpoint(tmp_path / "last.pt", {"result": {"step": 2}})
    assert load_checkpoint(tmp_path / "last.pt")["result"]["step"] == 2
    assert load_checkpoint(tmp_path / "previous.pt")["result"]["step"] == 1


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "update smallvit"), (0, "train the run again")]
)
def test_a_checkpoint_of_another_format_is_refused_and_left_alone(
    stopped, capsys, monkeypatch, version, remedy
):
    last = stopped / "checkpoints" / "last.pt"
    state = load_checkpoint(last)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", version)
    save_checkpoint(last, state)
    monkeypatch.undo()
    before = last.read_bytes()
    assert main(["finetune", "--resume", str(stopped)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"has format {version}; this version reads 1: {remedy}" in line
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    "setting", [["--model.patch-size", "1"], ["--model.embed-dim", "32"], ["--seed", "1"]]
)
def test_the_checkpoint_of_another_run_is_refused(command, stopped, capsys, tmp_path, setting):
    other = tmp_path / "other"
    assert main([*command, *setting, "--epochs", "0.5", "--out", str(other)]) == 0
    shutil.copy(other / "checkpoints" / "last.pt", stopped / "checkpoints" / "last.pt")
    assert main(["finetune", "--resume", str(stopped)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last.pt was written with other settings: put them back" in line


ITSELF: list = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    "content",
    [
        {"checksum": "x"},
        {"checksum": "x", "format": 1, "x": torch.eye(3).to_sparse()},
        {"checksum": "x", "format": 1, "x": torch.empty(3, device="meta")},
        {"checksum": None, "format": 1, "x": ITSELF},
        {"checksum": torch.ones(2), "format": 1},
        {"checksum": "x", "format": torch.ones(2)},
    ],
)
def test_contents_that_nothing_here_writes_are_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(DataError, match=r"no whole checkpoint|was altered"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_folder_that_cannot_hold_the_checkpoints_is_refused_with_both_figures(
    tmp_path, monkeypatch
):
    """1000 weights of 4 bytes, twice that for the optimizer, 3 of them; 4 with the best."""
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 40_000, 40_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    network = nn.Linear(1000, 1, bias=False)
    check_room(tmp_path, network, selects=False)
    with pytest.raises(DataError, match=r"need 0\.048 MB and there are 0\.040 MB: free some room"):
        check_room(tmp_path, network, selects=True)
    (tmp_path / "last.pt").write_bytes(bytes(8_000))  # is replaced
    check_room(tmp_path, network, selects=True)
