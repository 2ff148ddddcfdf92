"""What a command says of its length and memory before it starts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.cli.app import main
from smallvit.core import memory
from smallvit.engine import forecast
from smallvit.runs import chain

CUT = forecast.Forecast(steps=10, evaluations=0, step_s=10.0, most_bytes=10**9, micro_batch=4)


@pytest.fixture(autouse=True)
def _every_run_is_long(monkeypatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_SAYING_S", 0.0)
    monkeypatch.setattr(chain, "WORTH_PLANNING_S", 0.0)


@pytest.mark.parametrize("stage", ["pretrain", "teacher", "finetune"])
def test_a_dry_run_says_how_long_the_run_would_take(stage, tiny, tmp_path, capsys):
    start = ["--init", "scratch"] if stage == "finetune" else []
    assert main([stage, "--recipe", tiny, "--dry-run", *start]) == 0
    lines = capsys.readouterr().err.splitlines()
    (before,) = [i for i, line in enumerate(lines) if line.startswith(f"{stage}: about ")]
    (after,) = [i for i, line in enumerate(lines) if line.startswith(f"dry run of {stage}: ")]
    assert before < after
    assert " one step are fine; about " in lines[after]
    assert not (tmp_path / "runs").exists()


def test_a_run_of_all_stages_says_the_length_of_each_and_writes_nothing(tiny, tmp_path, capsys):
    assert main(["run", tiny, "--dry-run"]) == 0
    said = capsys.readouterr().err
    for stage in ("pretrain", "teacher", "4 x finetune"):
        assert f"plan: {stage}: about " in said
    assert "for all steps together" in said
    assert "step 1/" not in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_all_stages_says_what_is_wrong_with_the_data_and_what_is_cut(
    tiny, tmp_path, capsys, monkeypatch
):
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for i in range(160):
        path = data / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (data / "a" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr(chain, "foresee_stage", lambda *_: CUT)
    assert main(["run", tiny, "--data", str(data), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "0.png" in said
    assert "plan: pretrain: about 1 min 40 s for 10 steps of 10 s" in said
    assert "memory, 4 images at once (--micro-batch)" in said
    assert said.splitlines()[-1].startswith("dry run of ")
    assert said.splitlines()[-1].endswith(": settings and data are fine")


def test_a_teacher_that_nobody_asked_for_says_how_long_it_takes(tiny, tmp_path, capsys):
    words = ["--token-label", "--init", "scratch", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(["finetune", "--recipe", tiny, *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    at = {
        name: next(i for i, line in enumerate(lines) if name in line)
        for name in (
            "training one",
            "teacher: about ",
            "teacher  step ",
            "label: about ",
            "score maps of",
        )
    }
    assert list(at.values()) == sorted(at.values())


def test_memory_that_is_not_there_is_refused_with_what_works_then(
    tiny, tmp_path, capsys, monkeypatch
):
    """The batch size that is named, with the same folder; nothing is left of the first try."""
    tried = forecast._try

    def noted(training, batch, size):
        result = tried(training, batch, size)
        return replace(result, before=10**9, peak=10**9 + 10**8 * result.images)

    monkeypatch.setattr(forecast, "_try", noted)
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "peak_bytes", lambda: 10**9)  # not that of all tests before
    words = ["pretrain", "--recipe", tiny, "--method", "simclr", "--out", str(tmp_path / "run")]
    assert main([*words, "--epochs", "0.1"]) == 2
    said = capsys.readouterr().err
    assert "32 images at once need about 4.2 GB of memory, and there are 2.0 GB" in said
    fits = said.partition("--batch-size ")[2].partition(" ")[0]
    assert fits == "4"
    assert not (tmp_path / "run").exists()
    assert main([*words, "--batch-size", fits, "--epochs", "0.01"]) == 0


def test_a_recipe_for_a_gpu_says_so_on_a_cpu_and_names_the_one_for_it(caplog):
    from smallvit.runs.recipe import load_recipe, say_fit

    recipe, name = load_recipe("generic/64px", {"runtime": {"device": "cpu"}})
    assert main(["recipes", "check", recipe.cpu_recipe]) == 0
    say_fit(recipe, name)
    assert "generic/64px is made for a GPU" in caplog.text


def test_precision_is_said_once_where_it_can_be_chosen(tiny, tmp_path, capsys, monkeypatch):
    """By neither a stage that another command starts nor a run that goes on."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    out = ["--out", str(tmp_path / "all")]
    arms = ["--pretrain.schedule.epochs", "0.2", "--finetune.schedule.epochs", "0.5"]
    assert main(["run", tiny, *arms, *out]) == 0
    assert capsys.readouterr().err.count("--precision bf16") == 1
