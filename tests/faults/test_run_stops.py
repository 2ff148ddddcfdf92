"""Runs that are told to stop, and runs that leave the finite numbers."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallvit.cli.app import main
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.runs import supervised

# A run that hangs in its first validation, with the state after step 4 saved; $1 says when.
HANGING = """
import sys, time
from pathlib import Path
from smallvit.cli.app import main
from smallvit.runs import supervised

def hang(*_, **__):
    Path(sys.argv[1]).touch()
    while True:
        time.sleep(0.01)

supervised.score_classifier = hang
sys.exit(main(sys.argv[2:]))
"""

# A run that says when it is under way, and waits until it has been told to stop.
WAITING = """
import signal, sys, time
from pathlib import Path
from smallvit.cli.app import main
from smallvit.data.views import LabeledBatches

draw, before = LabeledBatches.__call__, signal.getsignal(signal.SIGTERM)

def wait(self, step, *more):
    if step == 6:
        arrived = []
        noted = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *words: (arrived.append(1), noted(*words)))
        Path(sys.argv[1]).touch()
        while not arrived:
            time.sleep(0.01)
    return draw(self, step, *more)

LabeledBatches.__call__ = wait
sys.exit(main(sys.argv[2:]))
"""


def wait_for(mark: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def in_validation(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Do something in the first validation."""

    def at(act: Callable[[], None]) -> None:
        score, done = supervised.score_classifier, []

        def scored(*words: Any, **more: Any) -> dict[str, float]:
            if not done:
                done.append(act())
            return score(*words, **more)

        monkeypatch.setattr(supervised, "score_classifier", scored)

    return at


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_validation_ends_the_run_after_the_next_step(
    command, in_validation, whole, same_weights, capsys, tmp_path, number, code, times
):
    """Two at once are one stop: ``timeout`` signals a process and then its group."""
    run = tmp_path / "run"

    def stop() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    in_validation(stop)
    assert main([*command, "--out", str(run)]) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "after step 6 of 12, state saved: continue with smallvit finetune --resume" in line
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert load_checkpoint(run / "checkpoints" / "last.pt")["result"]["step"] == 6
    assert main(["finetune", "--resume", str(run)]) == 0
    assert same_weights(run, whole)


@pytest.mark.slow
def test_whoever_insists_ends_a_run_that_hangs_and_it_goes_on_from_what_it_saved(
    command, start, whole, same_weights, tmp_path
):
    run, mark = tmp_path / "run", tmp_path / "mark"
    process = start(HANGING, str(mark), *command, "--out", str(run))
    wait_for(mark, process)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert process.returncode == -signal.SIGTERM
    assert json.loads((run / "result.json").read_text())["status"] == "running"
    assert load_checkpoint(run / "checkpoints" / "last.pt")["result"]["step"] == 4
    assert main(["finetune", "--resume", str(run)]) == 0
    assert same_weights(run, whole)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs the command timeout")
def test_a_limit_of_time_ends_the_run_with_its_state_saved(
    command, start, whole, same_weights, tmp_path
):
    """``timeout`` passes a signal on as it does when its time is up, without the wait for it."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    limit = ("timeout", "--preserve-status", "-s", "TERM", "1h")
    process = start(WAITING, str(mark), *command, "--out", str(run), before=limit)
    wait_for(mark, process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert load_checkpoint(run / "checkpoints" / "last.pt")["result"]["step"] == 7
    assert main(["finetune", "--resume", str(run)]) == 0
    assert same_weights(run, whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_batch_is_named_and_the_checkpoint_before_it_is_sound(
    command, at_step, whole, same_weights, capsys, tmp_path, value
):
    run = tmp_path / "run"

    def poison(batch):
        images = batch.images.clone()
        images[3, 0, 2, 2] = value
        return replace(batch, images=images)

    with at_step(7, poison):
        assert main([*command, "--out", str(run)]) == 4
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("smallvit: the loss or its gradient became NaN or infinite at step 7 (")
    state = load_checkpoint(run / "checkpoints" / "last.pt")
    assert state["result"]["step"] == 6
    assert all(x.isfinite().all() for x in state["objective"].values() if x.is_floating_point())
    assert main(["finetune", "--resume", str(run)]) == 0  # the poison is gone
    assert same_weights(run, whole)


def test_a_rate_that_blows_the_weights_up_ends_with_a_state_that_is_finite(
    command, capsys, tmp_path
):
    run = tmp_path / "run"
    assert main([*command, "--optim.lr", "1e12", "--out", str(run)]) == 4
    assert "lower optim.lr" in capsys.readouterr().err
    for path in (run / "checkpoints").iterdir():
        tensors = load_checkpoint(path)["objective"].values()
        assert all(x.isfinite().all() for x in tensors if x.is_floating_point())


def test_a_metric_that_is_always_nan_leaves_the_last_weights(command, monkeypatch, tmp_path):
    nan = dict.fromkeys(("top1", "top5", "loss"), float("nan")) | {"n": 1.0}
    monkeypatch.setattr(supervised, "score_classifier", lambda *words, **more: nan)
    run = tmp_path / "run"
    assert main([*command, "--out", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["selected_on"] == "last step"
    assert not (run / "checkpoints" / "best.pt").exists()
    text = (run / "metrics.jsonl").read_text()
    assert '"val/top1": null' in text
    assert "NaN" not in text


def test_a_run_does_not_continue_in_another_precision_or_batch(stopped, capsys):
    resume = ["finetune", "--resume", str(stopped)]
    assert main([*resume, "--precision", "bf16"]) == 2
    assert "runtime.precision: auto -> bf16" in capsys.readouterr().err
    assert main([*resume, "--batch-size", "16"]) == 2
    assert "finetune.optim.batch_size: 32 -> 16" in capsys.readouterr().err
