"""``smallvit segment`` from made shapes to a scored run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from smallvit.cli import app
from smallvit.core.errors import DataError, InterruptedRunError
from smallvit.engine import state as engine_state
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.curves import draw_curves
from smallvit.runs.score import evaluate_run

SIDE = 16
COUNTS = {"train": 48, "val": 16, "test": 8}
TINY = ["--model.patch-size", "2", "--model.embed-dim", "16", "--model.depth", "1"]
TINY += ["--model.num-heads", "2", "--batch-size", "16", "--schedule.warmup-epochs", "1"]
LINEAR = [*TINY, "--head", "linear"]
UPERNET = [*TINY, "--head.width", "16"]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Noise with a bright upright bar or a dark lying one on it."""
    generator = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in ("images", "masks"):
            (tmp_path / "shapes" / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = generator.normal(120, 20, (SIDE, SIDE, 3))
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            start = int(generator.integers(0, SIDE - 5))
            bar = np.s_[:, start : start + 5] if i % 2 else np.s_[start : start + 5]
            pixels[bar] += 90 if i % 2 else -90
            mask[bar] = 1 + i % 2
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(tmp_path / "shapes" / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "shapes" / "masks" / split / f"{i}.png")
    return tmp_path / "shapes"


def segment(*words: str | Path) -> int:
    return app.main(["segment", "--device", "cpu", *map(str, words)])


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_a_tiny_network_beats_the_most_frequent_class_clearly(
    shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("smallvit.runs.job.draw_curves", draw_curves)
    run = tmp_path / "run"
    words = ["--data", shapes, *LINEAR, "--epochs", "25", "--schedule.eval-epochs", "5"]
    assert segment(*words, "--optim.lr", "5e-3", "--out", run) == 0
    result = result_of(run)
    assert (result["stage"], result["status"], result["head"]) == ("segment", "completed", "linear")
    baseline = result["baseline"]["val/miou"]
    assert result["metrics"]["val/miou"] > 0.8 > 2 * baseline
    said = " ".join(capsys.readouterr().err.split())
    assert "the most frequent class alone" in said
    for name in ("plots/curves.png", "plots/segments.png", "metrics.jsonl", "train.log"):
        assert (run / name).stat().st_size > 0
    with Image.open(run / "plots" / "segments.png") as shown:
        assert shown.width > shown.height > 200
    backbone = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True)
    best = load_checkpoint(run / "checkpoints" / "best.pt")["objective"]
    weight = best["student.model.blocks.0.mlp.fc1.weight"]
    assert torch.equal(backbone.blocks[0].mlp.fc1.weight, weight)

    scores = evaluate_run(run).metrics
    assert scores["miou"] == result["metrics"]["val/miou"]
    assert (scores["n"], scores["majority/miou"]) == (COUNTS["val"], baseline)
    assert {"iou/class 0", "iou/class 1", "iou/class 2"} < scores.keys()
    assert evaluate_run(run, split="test").metrics["n"] == COUNTS["test"]
    assert "test/miou" not in (run / "metrics.jsonl").read_text()
    Image.new("L", (SIDE, SIDE), 1).save(shapes / "masks" / "val" / "0.png")
    with pytest.raises(
        DataError, match="is not the data that it was trained on, or is split or labelled"
    ):
        evaluate_run(run)


def test_a_resumed_run_ends_like_an_unbroken_one(shapes, tmp_path, monkeypatch):
    words = ["--data", shapes, *UPERNET, "--epochs", "2", "--model.drop-path-rate", "0.2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert segment(*words, "--out", whole) == 0
    save, saved = engine_state.save_checkpoint, []

    def stop_after_two(path, state):
        save(path, state)
        saved.append(path.name)
        if state["result"]["step"] >= 2:
            raise InterruptedRunError(15, "stopped")

    monkeypatch.setattr(engine_state, "save_checkpoint", stop_after_two)
    assert segment(*words, "--log.checkpoint-steps", "2", "--out", broken) == 143
    assert result_of(broken)["status"] == "interrupted"
    monkeypatch.setattr(engine_state, "save_checkpoint", save)
    assert segment("--resume", broken) == 0
    ours, theirs = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, broken))
    assert ours["result"]["step"] == theirs["result"]["step"] == 6
    for part in ("objective", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_resume_refuses_other_settings_and_finished_runs(shapes, tmp_path, capsys):
    run = tmp_path / "run"
    assert segment("--data", shapes, *LINEAR, "--epochs", "0.3", "--out", run) == 0
    assert segment("--resume", run) == 2
    assert "that run is complete" in capsys.readouterr().err
    result = result_of(run) | {"status": "interrupted"}
    (run / "result.json").write_text(json.dumps(result))
    assert segment("--resume", run, "--optim.lr", "0.1") == 2
    assert "segment.optim.lr: 0.0005 -> 0.1" in capsys.readouterr().err
    assert segment("--resume", run, "--recipe", run / "recipe.yaml") == 2


def test_a_pretrain_run_brings_its_network_and_patches(shapes, tiny, tmp_path):
    """The run's images are 8 px with patches of 2: of 16 px there are more, not larger ones."""
    start, run = tmp_path / "start", tmp_path / "run"
    words = ["pretrain", "--recipe", tiny, "--epochs", "0.1", "--out", str(start)]
    assert app.main(words) == 0
    still = ["--optim.lr", "1e-12", "--schedule.min-lr", "1e-12", "--epochs", "0.3"]
    words = ["--data", shapes, "--init", start, *still, "--batch-size", "16", "--head.width", "8"]
    assert segment(*words, "--out", run) == 0
    recipe, result = yaml.safe_load((run / "recipe.yaml").read_text()), result_of(run)
    assert (recipe["model"]["embed_dim"], recipe["model"]["patch_size"]) == (16, 2)
    assert recipe["segment"]["init"] == str(start)
    assert (result["init"], result["extra_data"]) == ("pretrain", "digits")
    assert result["upstream"]["pretrain"]["samples_seen"] > 0
    ours, theirs = (
        timm.create_model(f"local-dir:{path / 'export'}", pretrained=True) for path in (run, start)
    )
    key = "blocks.1.attn.qkv.weight"
    torch.testing.assert_close(ours.state_dict()[key], theirs.state_dict()[key], atol=1e-6, rtol=0)
    again = tmp_path / "again"
    shutil.copytree(start / "export", tmp_path / "weights")
    words = ["--data", shapes, "--init", tmp_path / "weights", *still, "--batch-size", "16"]
    assert segment(*words, "--head", "linear", "--out", again) == 0
    assert result_of(again)["init"] == "weights"


def test_its_recipe_runs_again(shapes, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert segment("--data", shapes, *LINEAR, "--epochs", "0.3", "--out", first) == 0
    assert segment("--recipe", first / "recipe.yaml", "--out", second) == 0
    ours, theirs = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (first, second))
    torch.testing.assert_close(ours["objective"], theirs["objective"], rtol=0, atol=0)


def test_a_dry_run_writes_nothing(shapes, tmp_path):
    assert segment("--data", shapes, *UPERNET, "--dry-run") == 0
    assert not (tmp_path / "runs").exists()


MISTAKES = {
    "no data": ([], 2, "give --data FOLDER"),
    "no folder": (["--data", "/no/such"], 3, "no images/train in /no/such"),
    "unknown head": (["--data", "x", "--head", "uppernet"], 2, "upernet-light"),
    "unknown start": (["--data", "x", "--init", "runs/none"], 2, "runs/none is not there"),
    "nothing to resume": (["--resume", "runs/none"], 2, "no run there"),
    "two recipes": (["--recipe", "x.yaml", "--resume", "runs/none"], 2, "leave --recipe out"),
    "falling bounds": (["--augment.scale", "0.9", "0.2"], 2, "augment.scale"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_its_exit_code(case, capsys):
    words, code, said = MISTAKES[case]
    assert segment(*words) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in line
    assert line.startswith("smallvit: ")


def test_rgb_masks_end_before_training(shapes, tmp_path, capsys):
    Image.new("RGB", (SIDE, SIDE)).save(shapes / "masks" / "train" / "0.png")
    assert segment("--data", shapes, *LINEAR, "--out", tmp_path / "run") == 3
    assert "mask of mode RGB" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
