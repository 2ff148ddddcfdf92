"""Run folders that the version before the packages were moved wrote, read by this one.

``run_folders/before_rooms`` has a pretraining, a fine-tuning that starts from it, and a fine-tuning
that SIGTERM stopped after step 3 of 4; digits, a ViT 8 wide with one block, one thread.
"""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import smallvit as sv
from smallvit.cli.app import main
from smallvit.runs.score import evaluate_run

FOLDERS = Path(__file__).with_name("run_folders") / "before_rooms"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(FOLDERS, tmp_path / "runs")
    return tmp_path / "runs"


def test_an_old_run_scores_what_it_scored(old):
    scored = evaluate_run(old / "finetune")
    assert scored.metrics["top1"] == pytest.approx(
        sv.Run(old / "finetune").result["metrics"]["val/top1"], abs=1e-9
    )


def test_an_old_run_that_was_stopped_goes_on_to_the_weights_of_an_unbroken_one(old):
    out = ["--out", str(old / "again")]
    assert main(["finetune", "--resume", str(old / "stopped")]) == 0
    assert sv.Run(old / "stopped").result["steps"] == 4
    assert main(["finetune", "--recipe", str(old / "stopped" / "recipe.yaml"), *out]) == 0
    first, second = (
        load_file(old / name / "export" / "model.safetensors") for name in ("stopped", "again")
    )
    assert first.keys() == second.keys()
    for name, weights in first.items():
        assert (weights - second[name]).abs().max() < 1e-5, name


def test_old_pretrained_weights_start_a_new_run(old):
    model = {"name": "vit_tiny", "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
    run = sv.finetune(
        dataset="digits", model=model, init=old / "pretrain", epochs=1, out=old / "new"
    )
    assert run.result["init"] == "pretrain"
    assert run.result["status"] == "completed"
