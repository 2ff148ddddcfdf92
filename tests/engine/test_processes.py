"""Two processes take the steps of one: the same losses, weights, scores and files."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smallvit.cli.app import main
from smallvit.engine.log import read_metrics
from smallvit.parallel.launch import launched, launched_number
from smallvit.parallel.rows import Rows, cut, mirrored_part, seeing

SCRIPT = Path(__file__).with_name("every_objective.py")
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:patches of 4 px")
TINY = [
    *("pretrain", "--dataset", "digits", "--model", "vit_tiny", "--model.embed-dim", "16"),
    *("--model.depth", "1", "--model.num-heads", "2", "--model.drop-path-rate", "0.2"),
    *("--method.head-batch-norm",),
    *("--batch-size", "64", "--log.every-steps", "1", "--schedule.eval-epochs", "100"),
]
PATIENCE_S = 60  # a lost process must be noticed within it


def torchrun(*words: str, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    # A store on a port of its own, so that tests can run beside each other.
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *words]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The script's functions, in this process."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Any]:
    """What the script finds in two processes."""
    path = tmp_path_factory.mktemp("pair") / "found.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = torchrun(str(SCRIPT), str(path), env=env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return json.loads(path.read_text())


@pytest.mark.exact
def test_two_processes_take_the_steps_of_one_with_every_objective(alone, pair):
    """Also where images are compared, averaged over or dropped by chance; tolerance 1e-5."""
    data = alone["dataset"]()
    found = {name: alone["run"](name, *rest) for name, *rest in alone["objectives"](data)}
    assert pair["losses"].keys() == found.keys()
    for name, losses in found.items():
        assert pair["losses"][name] == pytest.approx(losses, rel=1e-5), name


@pytest.mark.exact
def test_two_processes_score_every_image_once_in_order_and_bit_for_bit(alone, pair):
    data = alone["dataset"]()
    backbone = alone["network"](num_classes=5)
    for forward, (values, labels) in zip(
        (alone["predict_logits"], alone["extract_features"]), pair["scored"], strict=True
    ):
        batches = alone["eval_batches"](data, data.splits["val"], 4)
        mine, mine_labels = forward(backbone, batches, autocast=torch.no_grad)
        assert len(values) == 13
        assert values == mine.tolist()
        assert labels == mine_labels.tolist()


@pytest.mark.exact
def test_micro_batches_take_the_same_steps(alone):
    """Dropout and stochastic depth included; batch norms see what is computed at once."""
    data = alone["dataset"]()
    for whole, parts in zip(alone["objectives"](data), alone["objectives"](data), strict=True):
        name, objective = whole[0], whole[1]
        if objective.compares_images or "batch norm" in name or name == "dino":
            continue
        expected = alone["run"](*whole)
        assert alone["run"](*parts, micro_batch=2) == pytest.approx(expected, rel=1e-5), name


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, str]:
    for name in ("SMALLVIT_CACHE_DIR", "SMALLVIT_RUNS_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def has_steps(folder: Path, number: int) -> Callable[[], bool]:
    return lambda: len(read_metrics(folder / "metrics.jsonl")) >= number


@pytest.mark.slow
def test_a_run_stopped_in_two_processes_goes_on_in_one(tmp_path, places):
    """One of them wrote, both stopped, and the losses are those of a run that one process made."""
    folder, whole = tmp_path / "pair", tmp_path / "alone"
    length = ("--epochs", "3")
    process = torchrun(*("-m", "smallvit"), *TINY, *length, "--out", str(folder), env=places)
    wait_for(has_steps(folder, 5), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert output.count("stopped by SIGTERM") == 1, output
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert json.loads((folder / "env.json").read_text())["processes"] == 2
    assert main([*TINY, *length, "--out", str(whole)]) == 0
    assert main(["pretrain", "--resume", str(folder)]) == 0
    rows, expected = (read_metrics(path / "metrics.jsonl") for path in (folder, whole))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_within_seconds_and_what_was_done_is_kept(tmp_path, places):
    folder = tmp_path / "run"
    words = ("-m", "smallvit", *TINY, "--epochs", "1000", "--out", str(folder))
    process = torchrun(*words, env=places)
    wait_for(has_steps(folder, 3), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lost = next(  # torchrun starts them in order, but lists them in any
        int(child)
        for child in children
        if "RANK=1" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )
    os.kill(lost, signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "process 0 of 2 lost the connection to another" in output, output
    assert f"exitcode  : -9 (pid: {lost})" in output, "torchrun's report names it"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert "lost the connection to another" in result["error"]
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert state["result"]["step"] >= 3
    moments = state["optimizer"]["state"].values()
    assert {int(moment["step"]) for moment in moments} == {state["result"]["step"]}
    assert not (folder / "run.lock").exists()


def test_work_of_one_process_is_refused_under_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert main(["bench", "digits", "--out", str(tmp_path / "board")]) == 2
    assert "torchrun started 2" in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "many"), ("RANK", "2"), ("MASTER_PORT", ""), ("MASTER_ADDR", "")],
)
def test_an_environment_that_is_not_torchruns_is_refused_with_the_remedy(
    name, value, monkeypatch, capsys
):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost"}
    for key, text in {**given, name: value}.items():
        monkeypatch.setenv(key, text)
    assert main(["pretrain", "--dataset", "digits"]) == 2
    said = capsys.readouterr().err
    assert f"{name} is {value!r}, which is not what torchrun says: unset RANK" in said


def test_a_process_that_is_told_that_it_is_alone_is(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert (launched(), launched_number()) == (1, 0)


@pytest.mark.parametrize(("total", "parts"), [(8, 2), (7, 2), (9, 3), (256, 8), (10, 5), (1, 1)])
def test_parts_hold_every_row_once_and_mirror_images_together(total, parts):
    found = [mirrored_part(total, number, parts) for number in range(parts)]
    assert sorted(row for part in found for row in part) == list(range(total))
    for part in found:
        assert part[::-1] == [total - 1 - row for row in part]


def test_a_micro_batch_is_a_mirrored_part_of_the_rows_of_a_process():
    rows = Rows(index=torch.tensor([0, 1, 2, 9, 10, 11]), total=12)
    parts = cut(6, 2, rows, CPU)
    assert [place.tolist() for place, _ in parts] == [[0, 5], [1, 4], [2, 3]]
    assert [part.index.tolist() for _, part in parts] == [[0, 11], [1, 10], [2, 9]]
    assert sum(part.share for _, part in parts) == pytest.approx(rows.share)


@pytest.mark.parametrize("most", [None, 6, 100])
def test_a_batch_that_fits_is_not_cut(most):
    assert cut(6, most, None, CPU) == [(None, None)]


def test_rows_are_known_inside_the_forward_pass_alone():
    from smallvit.parallel.rows import current_rows

    rows = Rows(index=torch.tensor([0, 3]), total=4)
    with seeing(rows):
        assert current_rows() is rows
    assert current_rows() is None
