"""The main job through the command line, on real digits and on made folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from smallvit.cli.app import main


def train(stage: str, tiny: str, out: Path, *more: str) -> int:
    return main([stage, "--recipe", tiny, "--out", str(out), *more])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def stop_in_flight(arguments: list[str], run: Path, number: int) -> int:
    """Start the command, and signal it in the middle of an epoch, once it has a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smallvit", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",  # as in tests/conftest.py: other threads, other roundings
        },
    )
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.fixture
def score_maps(copy_run, tmp_path: Path) -> str:
    copy_run(tmp_path / "teacher", "teacher")
    label = ["label", "--teacher", str(tmp_path / "teacher"), "--out", str(tmp_path / "label")]
    assert main(label) == 0
    return str(tmp_path / "label" / "score_maps.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_pretrain_killed_in_mid_epoch_ends_with_the_same_weights(tiny, tmp_path, number):
    more = ["--epochs", "6", "--log.checkpoint-steps", "3"]  # 40.5 steps an epoch
    assert train("pretrain", tiny, tmp_path / "whole", *more) == 0
    broken = tmp_path / "broken"
    code = stop_in_flight(
        ["pretrain", "--recipe", tiny, "--out", str(broken), *more], broken, number
    )
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    status = json.loads((broken / "result.json").read_text())["status"]
    assert status == {signal.SIGKILL: "running", signal.SIGTERM: "interrupted"}[number]
    assert main(["pretrain", "--resume", str(broken)]) == 0
    assert_same_weights(tmp_path / "whole", broken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_finetune_killed_in_mid_epoch_ends_with_the_same_weights(
    tiny, tmp_path, score_maps, number
):
    more = ["--token-label", "--init", "scratch", "--score-maps", score_maps, "--epochs", "40"]
    more += ["--log.checkpoint-steps", "3"]  # 8.1 steps an epoch
    more += ["--augment.policy", "randaugment", "--augment.repeats", "3"]
    more += ["--augment.cutmix-alpha", "1", "--augment.mixup-alpha", "0.8"]
    assert train("finetune", tiny, tmp_path / "whole", *more) == 0
    broken = tmp_path / "broken"
    code = stop_in_flight(
        ["finetune", "--recipe", tiny, "--out", str(broken), *more], broken, number
    )
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    assert main(["finetune", "--resume", str(broken)]) == 0
    assert_same_weights(tmp_path / "whole", broken)
    whole, resumed = (
        json.loads((path / "result.json").read_text()) for path in (tmp_path / "whole", broken)
    )
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["samples_seen"] == whole["samples_seen"]


def test_the_resolved_recipe_of_a_run_reproduces_it(tiny, tmp_path, score_maps):
    more = ["--token-label", "--init", "scratch", "--score-maps", score_maps, "--optim.lr", "3e-3"]
    assert train("finetune", tiny, tmp_path / "first", *more) == 0
    again = str(tmp_path / "first" / "recipe.yaml")
    assert main(["finetune", "--recipe", again, "--out", str(tmp_path / "second")]) == 0
    assert_same_weights(tmp_path / "first", tmp_path / "second")


def test_the_resolved_recipe_runs_again_from_another_folder(
    tiny, tmp_path, score_maps, monkeypatch
):
    relative = str(Path(score_maps).relative_to(tmp_path))
    more = ["--token-label", "--init", "scratch", "--score-maps", relative, "--epochs", "0.2"]
    assert main(["finetune", "--recipe", tiny, "--out", "first", *more]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["finetune", "--recipe", "../first/recipe.yaml", "--dry-run"]) == 0


def test_a_broken_run_is_named_and_the_others_are_benched(tiny, tmp_path, capsys):
    for name in ("good", "bad"):
        assert train("finetune", tiny, tmp_path / "runs" / name, "--epochs", "0.2") == 0
    (tmp_path / "runs" / "bad" / "env.json").write_text("{")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "result.json").write_text("[]")
    assert main(["bench"]) == 0
    assert "bad/env.json is missing or broken" in capsys.readouterr().err
    assert main(["runs", "ls"]) == 0
    assert main(["eval", str(tmp_path / "runs" / "odd")]) == 3


def test_extra_data_is_remembered_along_a_chain_of_runs(tiny, tmp_path, photographs):
    """A start that saw other images taints every run that builds on it."""
    other = ["--data", str(photographs), "--data.image-size", "8", "--data.label-fraction", "1"]
    assert train("pretrain", tiny, tmp_path / "a", "--epochs", "0.2", *other) == 0
    init = tmp_path / "a"
    for name in ("b", "c"):
        run = tmp_path / name
        assert train("finetune", tiny, run, "--epochs", "0.2", "--init", str(init)) == 0
        assert json.loads((run / "result.json").read_text())["extra_data"] == "photos"
        init = run


def test_a_run_folder_holds_what_the_contract_says(copy_run, tmp_path):
    run = copy_run(tmp_path / "run", "teacher")
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert files == {
        *("recipe.yaml", "env.json", "result.json", "learned.npz", "metrics.jsonl", "train.log"),
        *("checkpoints/last.pt", "checkpoints/best.pt", "plots/curves.png"),
        *("export/config.json", "export/model.safetensors", "export/README.md"),
    }
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["samples_seen"] == result["steps"] * 32
    assert result["selected_on"].startswith("val/top1")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "opt/lr", "opt/grad_norm", "perf/images_per_s"} <= rows[0].keys()
    assert "val/top1" in rows[-1]
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert state["result"]["step"] == result["steps"]


@pytest.mark.parametrize("stage", ["finetune", "teacher"])
def test_timm_loads_the_export_with_class_names_and_the_same_logits(copy_run, tmp_path, stage):
    run = copy_run(tmp_path / "run", stage)
    model = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"][:3] == ["0", "1", "2"]
    assert model.pretrained_cfg["mean"] != (0.5, 0.5, 0.5)
    from smallvit.inference.export import read_export

    ours = read_export(run / "export").eval()
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(logits, ours.classify(ours(images).pooled))


def test_token_label_alone_continues_the_newest_pretrain_and_makes_what_is_missing(
    tiny, tmp_path, capsys
):
    assert main(["pretrain", "--recipe", tiny]) == 0
    assert main(["finetune", "--recipe", tiny, "--token-label"]) == 0
    said = capsys.readouterr().err
    assert "continuing from" in said
    assert "training one" in said
    stages = [
        json.loads(path.read_text())["stage"]
        for path in sorted((tmp_path / "runs").rglob("result.json"))
    ]
    assert sorted(stages) == ["finetune", "label", "pretrain", "teacher"]
    (path,) = (tmp_path / "runs").rglob("*-finetune-*/result.json")
    result = json.loads(path.read_text())
    assert (result["init"], result["token_labels"]) == ("pretrain", True)
    assert set(result["upstream"]) == {"pretrain", "teacher", "label"}
    # A second call uses the maps that are there, and needs no data named.
    assert main(["finetune", "--token-label", "--epochs", "1"]) == 0
    said = capsys.readouterr().err
    assert "continuing from the newest pretrain run, on digits" in said
    assert "training one" not in said


def test_run_does_every_arm_once_and_bench_writes_the_leaderboard(tiny, tmp_path, capsys):
    arguments = ["run", tiny, "--out", str(tmp_path / "all")]
    assert main(arguments) == 0
    board = json.loads((tmp_path / "all" / "leaderboard" / "leaderboard.json").read_text())
    arms = [row["arm"] for row in board["rows"]]
    assert arms == ["scratch", "SSL start", "token labels", "both"]
    assert len({row["samples_seen"] for row in board["rows"]}) == 1  # equal supervised passes
    assert all(row["n_test"] == 344 for row in board["rows"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("last.pt")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("complete already") == 7
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "all").rglob("last.pt")}
    assert main([*arguments, "--finetune.optim.lr", "1e-2"]) == 2
    scratch = str(tmp_path / "all" / "finetune-scratch")
    assert main(["bench", scratch, "--out", str(tmp_path / "board")]) == 0
    assert {path.suffix for path in (tmp_path / "board").iterdir()} == {
        *(".json", ".md", ".csv", ".html")
    }


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Class folders without splits: images of several modes and sizes, 60 a class."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cats", "dogs.v2")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(60):
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            shape = (20 + i % 7, 24, 3)
            pixels = generator.integers(0, 128, shape, dtype=np.uint8) + 127 * label
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_without_splits_is_cut_stored_and_trained_on(tiny, tmp_path, photographs):
    run = tmp_path / "run"
    arguments = [
        "--data",
        str(photographs),
        "--data.image-size",
        "16",
        "--data.label-fraction",
        "1",
    ]
    assert train("finetune", tiny, run, *arguments) == 0
    env = json.loads((run / "env.json").read_text())
    assert env["dataset"]["counts"] == {"train": 84, "labelled": 84, "val": 9, "test": 27}
    assert env["dataset"]["class_names"] == ["cats", "dogs.v2"]
    assert main(["eval", str(run), "--split", "test", "--knn", "--linear"]) == 0


def test_more_than_a_few_broken_files_stop_with_exit_3(photographs, tiny, tmp_path, capsys):
    for i in range(4):
        (photographs / "cats" / f"broken{i}.jpg").write_bytes(b"not a picture")
    assert train("pretrain", tiny, tmp_path / "run", "--data", str(photographs)) == 3
    assert "4 of 124 files cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_broken_file_below_one_percent_is_named_and_left_out(photographs, tiny, capsys):
    (photographs / "cats" / "broken.jpg").write_bytes(b"not a picture")
    assert main(["data", "info", str(photographs)]) == 0
    assert "left out: cats/broken.jpg (no image" in capsys.readouterr().out
    assert main(["pretrain", "--recipe", tiny, "--data", str(photographs), "--dry-run"]) == 0
    assert "1 files could not be decoded" in capsys.readouterr().err
