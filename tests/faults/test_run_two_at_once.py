"""Two runs in one folder, and what a dead one leaves in it."""

import json
import platform
import signal
import threading
import time
from pathlib import Path

import pytest

from smallvit.cli.app import main
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import create_folder, hold_folder

# A run that stays in its sixth step; $1 says when.
AT_WORK = """
import sys, time
from pathlib import Path
from smallvit.cli.app import main
from smallvit.data.views import LabeledBatches

draw = LabeledBatches.__call__

def stay(self, step, *more):
    while step == 5:
        Path(sys.argv[1]).touch()
        time.sleep(0.01)
    return draw(self, step, *more)

LabeledBatches.__call__ = stay
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_run_at_work_is_neither_continued_nor_replaced_until_it_is_dead(
    command, start, whole, same_weights, capsys, monkeypatch, packed, tmp_path
):
    run, mark = tmp_path / "run", tmp_path / "mark"
    process = start(AT_WORK, str(mark), *command, "--out", str(run))
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    for words in (["finetune", "--resume", str(run)], [*command, "--overwrite", "--out", str(run)]):
        assert main(words) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"in use by process {process.pid} on {platform.node()}: wait for its end" in line
    assert not (tmp_path / "cache").exists()  # refused before any work
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files

    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / "run.lock").exists()  # and is no obstacle
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(packed))
    assert main(["finetune", "--resume", str(run)]) == 0
    assert same_weights(run, whole)
    assert not (run / "run.lock").exists()


def test_of_runs_that_take_one_empty_folder_at_the_same_time_one_gets_it(tmp_path):
    barrier, outcomes = threading.Barrier(8), []

    def take() -> None:
        barrier.wait()
        try:
            create_folder(tmp_path / "run", overwrite=False)
            outcomes.append("taken")
        except ConfigError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["taken"]


def test_a_folder_is_free_again_after_an_error_and_its_litter_is_gone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("result.json.77.part", "checkpoints/last.part"):
        (tmp_path / name).write_text("half")
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    with hold_folder(tmp_path):
        left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run.lock"}
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]


def test_a_stopped_run_says_how_it_ended_and_when_it_began(stopped):
    before = json.loads((stopped / "result.json").read_text())
    assert before["status"] == "interrupted"
    assert main(["finetune", "--resume", str(stopped)]) == 0
    after = json.loads((Path(stopped) / "result.json").read_text())
    assert after["status"] == "completed"
    assert after["started"] == before["started"]
