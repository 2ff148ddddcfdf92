"""Where patch labels come from, and for how long, through the command line, on digits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smallvit.cli.app import main
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.log import read_metrics
from smallvit.run.api import finetune


def train(stage: str, recipe: str, out: Path, *more: str) -> int:
    return main([stage, "--recipe", recipe, "--out", str(out), *more])


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def teacher(tiny, tmp_path) -> str:
    assert train("teacher", tiny, tmp_path / "teacher", "--epochs", "12") == 0
    return str(tmp_path / "teacher")


def resumed_weights(run: Path, words: list[str]) -> dict[str, torch.Tensor]:
    """Put a finished run back to its best checkpoint, before the end, and go on from there."""
    assert main(words) == 0
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    shutil.copy(run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt")
    assert main(["finetune", "--resume", str(run)]) == 0
    return load_file(run / "export" / "model.safetensors")


ONLINE = ["--token-label", "--init", "scratch", "--token-label.source"]


def test_an_online_teacher_is_named_in_the_result_with_its_cost(tiny, teacher, tmp_path, capsys):
    run = tmp_path / "run"
    more = [*ONLINE, "online", "--teacher", teacher]
    assert train("finetune", tiny, run, *more) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["teacher"]["source"] == "online"
    assert result["teacher"]["run"] == teacher
    seen = json.loads((Path(teacher) / "result.json").read_text())["samples_seen"]
    assert result["upstream"]["teacher"]["samples_seen"] == seen
    assert "million multiply-adds an image in each step" in capsys.readouterr().err
    assert "train/loss_token" in read_metrics(run / "metrics.jsonl")[0]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["finetune"]["teacher"] == teacher
    assert not any("teacher" in key for key in _state(run))


def _state(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "last.pt")["objective"]


@pytest.mark.parametrize("source", ["online", "ema"])
def test_a_run_that_is_resumed_ends_with_the_same_weights(source, tiny, teacher, tmp_path):
    more = [*ONLINE, source, *(["--teacher", teacher] if source == "online" else [])]
    more += ["--token-label.token-target", "gumbel", "--token-label.token-decay", "cosine"]
    more += ["--epochs", "3", "--schedule.eval-epochs", "1"]
    assert train("finetune", tiny, tmp_path / "whole", *more) == 0
    broken = tmp_path / "broken"
    words = ["finetune", "--recipe", tiny, "--out", str(broken), *more]
    again = resumed_weights(broken, words)
    whole = load_file(tmp_path / "whole" / "export" / "model.safetensors")
    assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_without_a_teacher_online_labels_train_one(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    longer = yaml.safe_load(Path(tiny).read_text())
    longer["teacher"]["schedule"]["epochs"] = 12.0
    Path(tiny).write_text(yaml.safe_dump(longer))
    assert train("finetune", tiny, run, *ONLINE, "online", "--epochs", "1") == 0
    assert "training one" in capsys.readouterr().err
    made = Path(json.loads((run / "result.json").read_text())["teacher"]["run"])
    assert json.loads((made / "result.json").read_text())["stage"] == "teacher"


def test_the_students_average_needs_no_teacher(tiny, tmp_path):
    run = tmp_path / "run"
    assert train("finetune", tiny, run, *ONLINE, "ema", "--epochs", "1") == 0
    result = json.loads((run / "result.json").read_text())
    assert result["teacher"]["source"] == "ema"
    assert set(result["upstream"]) == set()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["ema", "--teacher", "TEACHER"], "token_label.source ema has no teacher"),
        (["online", "--score-maps", "maps"], "token_label.source online reads no score maps"),
        (["elsewhere"], "elsewhere"),
    ],
)
def test_sources_that_do_not_go_with_what_is_named_are_refused(
    more, said, tiny, teacher, tmp_path, capsys
):
    words = [teacher if word == "TEACHER" else word for word in more]
    assert train("finetune", tiny, tmp_path / "run", *ONLINE, *words) == 2
    assert said in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_settings_of_token_labels_without_token_labels_are_refused(tiny, tmp_path, capsys):
    words = ["--token-label.token-until", "0.5"]
    assert train("finetune", tiny, tmp_path / "run", *words) == 2
    assert "--token-label.token-until needs --token-label" in last_line(capsys)


def test_guidance_that_ends_is_seen_in_the_log(tiny, teacher, tmp_path):
    run = tmp_path / "run"
    more = [*ONLINE, "online", "--teacher", teacher, "--token-label.token-until", "0.5"]
    assert train("finetune", tiny, run, *more, "--log.every-steps", "1") == 0
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
    steps = {key: [row["step"] for row in rows if key in row] for key in ("train/loss_token",)}
    last = steps["train/loss_token"][-1]
    assert last == max(row["step"] for row in rows) // 2
    assert rows[-1]["step"] > last


def test_the_token_head_is_kept_and_read(tiny, teacher, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("finetune", tiny, run, *ONLINE, "online", "--teacher", teacher) == 0
    head = load_file(run / "export" / "token_head.safetensors")
    assert {tuple(value.shape) for value in head.values()} == {(10, 16), (10,)}
    capsys.readouterr()
    assert main(["eval", str(run), "--readout", "mean"]) == 0
    assert "readout mean" in capsys.readouterr().out


def test_python_takes_an_online_teacher(tiny, teacher):
    run = finetune(
        recipe=tiny,
        init="scratch",
        teacher=Path(teacher),
        token_label=True,
        epochs=1,
        **{"token_label.source": "online"},
    )
    assert run.result["teacher"]["source"] == "online"
