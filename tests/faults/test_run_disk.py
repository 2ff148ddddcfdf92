"""File systems that fill up, are read-only or are not what they should be."""

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from smallvit.cli.app import main
from smallvit.engine.checkpoint import load_checkpoint

logger = logging.getLogger("smallvit")

# A mount of its own for the process that follows: a file system of 4 MB at $1, read-only at $2.
MOUNTED = """
mount -t tmpfs -o size=4m tmpfs "$1" && mount --bind "$2" "$2" &&
mount -o remount,ro,bind "$2" && shift 2 && exec "$@"
"""

# Runs in there: prints what happened as one line of JSON.
FILLED = """
import io, json, os, shutil, sys
from contextlib import redirect_stderr
from pathlib import Path
import torch
from smallvit.core.console import console
from smallvit.core.errors import DataError
from smallvit.data.views import LabeledBatches
from smallvit.engine.checkpoint import save_checkpoint

disk, sealed, *command = sys.argv[1:]
disk, ballast, run = Path(disk), Path(disk, "ballast"), Path(disk, "run")
found, draw = {}, LabeledBatches.__call__

def fill(*left):
    with ballast.open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(disk).free - sum(left)))

def filled(self, step, *more):
    if step == 5 and not ballast.exists():
        fill()
    return draw(self, step, *more)

def call(*words):
    from smallvit.cli.app import main
    console.file = said = io.StringIO()
    with redirect_stderr(said):
        code = main(list(words))
    files = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
    return {"code": code, "said": said.getvalue(), "files": files}

LabeledBatches.__call__ = filled
found["full"] = call(*command, "--out", str(run))
found["result"] = json.loads((run / "result.json").read_text())
found["still full"] = call("finetune", "--resume", str(run))
ballast.unlink()
LabeledBatches.__call__ = draw
found["room again"] = call("finetune", "--resume", str(run))
shutil.copytree(run / "export", sys.argv[2] + "-export")
shutil.rmtree(run)

fill(100_000)
found["no room"] = call(*command, "--out", str(run))
shutil.rmtree(run)

os.environ["SMALLVIT_CACHE_DIR"] = str(disk / "cache")
found["no cache"] = call(*command, "--out", str(disk / "cached"))
ballast.unlink()
found["cache again"] = call(*command, "--out", str(disk / "cached"), "--epochs", "0.2")
shutil.rmtree(disk / "cache")

checkpoints = Path(disk, "large", "checkpoints")
checkpoints.mkdir(parents=True)
save_checkpoint(checkpoints / "last.pt", {"x": torch.ones(1)})
try:
    save_checkpoint(checkpoints / "last.pt", {"x": torch.ones(2_000_000), "y": torch.ones(9)})
except DataError as error:  # torch itself says "unexpected pos"
    found["too large"] = [str(error), *os.listdir(checkpoints)]

os.environ["SMALLVIT_RUNS_DIR"] = sealed
found["read-only runs"] = call(*command)
found["read-only out"] = call(*command, "--out", sealed + "/a/b")
found["cached"] = (disk / "cache").exists()
print(json.dumps(found))
"""


def mounting(folder: Path) -> tuple[str, ...]:
    """Return the words that start a process with these mounts, or skip."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, which mounts a small file system for one process")
    disk, sealed = folder / "disk", folder / "sealed"
    disk.mkdir()
    sealed.mkdir()
    rights = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-Urm")
    words = (*rights, "sh", "-c", MOUNTED, "sh", str(disk), str(sealed))
    done = subprocess.run([*words, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system may not be mounted here: {done.stderr.decode().strip()}")
    return words


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_more_than_the_steps_since_the_last_checkpoint(
    command, start, whole, same_weights, tmp_path
):
    before = mounting(tmp_path)
    words = (str(tmp_path / "disk"), str(tmp_path / "sealed"), *command)
    output, errors = start(FILLED, *words, before=before).communicate(timeout=240)
    assert output, errors
    found = json.loads(output.splitlines()[-1])

    full = found["full"]
    assert full["code"] == 3
    last_line = full["said"].strip().splitlines()[-1]
    assert last_line.startswith("smallvit: cannot write ")
    assert "(No space left on device): free some room" in last_line
    assert {"run/checkpoints/last.pt", "run/checkpoints/previous.pt"} <= set(full["files"])
    assert not [name for name in full["files"] if name.endswith((".part", ".lock"))]
    assert found["result"]["status"] in ("failed", "running")  # as far as it could be written
    assert found["still full"]["code"] == 3
    assert found["room again"]["code"] == 0, found["room again"]["said"]
    shutil.move(tmp_path / "sealed-export", tmp_path / "export")
    assert same_weights(tmp_path, whole)

    assert found["no room"]["code"] == 3
    assert " MB and there are 0." in found["no room"]["said"]
    assert "step" not in found["no room"]["said"]

    assert found["no cache"]["code"] == 3
    assert "cannot write the cache" in found["no cache"]["said"]
    assert not [name for name in found["no cache"]["files"] if name.startswith("cached/")]
    assert found["cache again"]["code"] == 0, found["cache again"]["said"]

    said, *files = found["too large"]
    assert "last.pt (No space left on device)" in said
    assert files == ["last.pt"]

    for name in ("read-only runs", "read-only out"):
        assert found[name]["code"] == 3
        assert "(Read-only file system): choose another --out" in found[name]["said"]
    assert not found["cached"]  # it ends before the data is packed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize(("name", "step"), [("metrics.jsonl", 8), ("train.log", 9)])
def test_a_log_that_cannot_be_written_is_named_once_the_state_is_saved(
    command, at_step, whole, same_weights, capsys, tmp_path, name, step
):
    run = tmp_path / "run"

    def fill(batch):
        if name == "train.log":
            (handler,) = (h for h in logger.handlers if isinstance(h, logging.FileHandler))
            assert handler.stream is not None
            os.dup2(os.open("/dev/full", os.O_WRONLY), handler.stream.fileno())
        else:
            (run / name).rename(run / "kept")
            (run / name).symlink_to("/dev/full")
        return batch

    with at_step(
        7, fill
    ):  # the terminal and train.log hear of evaluations alone: after 5, 9 and 12
        assert main([*command, "--log.checkpoint-steps", "20", "--out", str(run)]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"smallvit: cannot write {run / name} (No space left on device)")
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert load_checkpoint(run / "checkpoints" / "last.pt")["result"]["step"] == step
    if name == "metrics.jsonl":
        (run / name).unlink()
        (run / "kept").rename(run / name)
    assert main(["finetune", "--resume", str(run)]) == 0
    assert same_weights(run, whole)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(range(1, 13)) - set(steps) == ({8} if name == "metrics.jsonl" else set())


@pytest.mark.parametrize("place", ["runs", "out", "cache"])
def test_a_file_in_the_place_of_a_folder_is_named_before_any_work(
    command, capsys, monkeypatch, tmp_path, place
):
    file = tmp_path / "file"
    file.write_text("mine")
    cache = tmp_path / "cache"
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(file if place == "cache" else cache))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(file if place == "runs" else tmp_path / "runs"))
    out = ["--out", str(file / "run")] if place == "out" else []
    assert main([*command, *out]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("smallvit: cannot write ")
    assert str(file) in line
    assert file.read_text() == "mine"
    assert not cache.exists()
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_is_taken_is_refused_before_the_data_is_packed(
    command, stopped, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    assert main([*command, "--out", str(stopped)]) == 2
    assert f"continue it with --resume {stopped}" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_run_that_is_not_there_is_not_resumed(command, capsys, tmp_path):
    del command
    assert main(["finetune", "--resume", str(tmp_path / "nowhere")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"smallvit: --resume {tmp_path / 'nowhere'}: no run there")
    assert not (tmp_path / "nowhere").exists()
