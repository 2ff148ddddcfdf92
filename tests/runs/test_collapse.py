"""Collapses made on purpose, through the command line, on real digits."""

import json
from pathlib import Path

import pytest
import yaml

from smallvit.cli.app import main
from smallvit.engine.log import read_metrics

RECIPE = {
    "data": {"dataset": "digits"},
    "model": {"name": "vit_tiny", "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "runtime": {"device": "cpu", "precision": "fp32"},
    "pretrain": {
        "method": {
            "num_prototypes": 16,
            "hidden_dim": 16,
            "bottleneck_dim": 8,
            "head_batch_norm": True,
            "momentum": 0.9,
            "teacher_temp": 0.04,
            "freeze_last_layer_epochs": 0.0,
            "views": {"num_local": 0, "color_jitter_prob": 0.0, "blur_prob": [0.0, 0.0, 0.0]},
        },
        "optim": {"batch_size": 64, "lr": 1e-2, "grad_clip_norm": None},
        "schedule": {"epochs": 4.0, "warmup_epochs": 0.5, "eval_epochs": 1.0},
    },
}
# Targets that no temperature sharpens are uniform whatever the network says.
UNIFORM = ["--method.teacher-temp", "50", "--method.warmup-teacher-temp", "50"]


@pytest.fixture
def recipe(tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def pretrain(recipe: str, out: Path, *more: str) -> tuple[int, dict]:
    code = main(["pretrain", "--recipe", recipe, "--out", str(out), *more])
    return code, json.loads((out / "result.json").read_text())


def test_uniform_targets_end_the_run_with_exit_code_4_and_say_what_to_change(
    recipe, tmp_path, capsys
):
    code, result = pretrain(recipe, tmp_path / "run", *UNIFORM)
    assert code == 4
    assert result["status"] == "failed"
    assert "the targets are uniform (train/teacher_entropy 2.77" in result["error"]
    assert "lower method.teacher_temp" in result["error"]
    assert result["error"] in " ".join(capsys.readouterr().err.split())


def test_a_centre_that_stands_still_lets_every_target_become_one_prototype(recipe, tmp_path):
    code, result = pretrain(
        recipe, tmp_path / "run", "--method.center-momentum", "0.99999", "--epochs", "8"
    )
    assert code == 4
    assert "all targets are one prototype (train/prototype_entropy" in result["error"]


def test_a_run_that_learns_goes_through_and_is_watched(recipe, tmp_path):
    code, result = pretrain(recipe, tmp_path / "run")
    assert (code, result["status"]) == (0, "completed")
    watched = {"val/knn", "val/linear", "features/std", "features/rank"}
    assert set(result["metrics"]) == watched
    assert result["monitor"]["bank_images"] > 1000
    assert "nearest neighbors of " in (tmp_path / "run/train.log").read_text()
    assert {p.name for p in (tmp_path / "run/plots").iterdir()} == {
        *("curves.png", "tokens_pca.png", "attention.png")
    }


def test_a_collapse_that_is_to_be_warned_of_is_logged_once(recipe, tmp_path):
    code, result = pretrain(recipe, tmp_path / "run", *UNIFORM, "--monitor.on-collapse", "warn")
    assert (code, result["status"]) == (0, "completed")
    assert (tmp_path / "run/train.log").read_text().count("the targets are uniform") == 1


def test_a_collapsed_run_that_is_resumed_collapses_at_the_same_step(recipe, tmp_path):
    _, first = pretrain(recipe, tmp_path / "run", *UNIFORM)
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 4
    again = json.loads((tmp_path / "run/result.json").read_text())
    assert again["error"] == first["error"]
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == len(rows)


def test_simmim_of_a_network_whose_pooling_it_leaves_alone_is_judged_by_its_patch_tokens(
    recipe, tmp_path
):
    """CaiT's class attention stays at its start, 1e-5 of a constant."""
    network = ["--model", "gani_cait", "--model.depth", "1", "--model.embed-dim", "16"]
    small = [*network, "--model.num-heads", "2", "--model.patch-size", "2"]
    settings = ["--method", "simmim", "--schedule.eval-epochs", "0.5", *small]
    code, result = pretrain(recipe, tmp_path / "run", *settings)
    assert (code, result["status"]) == (0, "completed")
    assert result["metrics"]["features/std"] > 0.01
    assert result["monitor"]["features"] == "patches"
    assert main(["eval", str(tmp_path / "run"), "--knn", "--linear"]) == 0
