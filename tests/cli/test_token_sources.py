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
from smallvit.runs.api import finetune


def train(stage: str, recipe: str, out: Path, *more: str) -> int:
    return main([stage, "--recipe", recipe, "--out", str(out), *more])


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def teacher(copy_run, tmp_path) -> str:
    return str(copy_run(tmp_path / "teacher", "teacher", "--epochs", "12"))


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
    assert abs(last - max(row["step"] for row in rows) / 2) <= 0.5
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


def test_a_dry_run_looks_at_the_teacher_that_is_named(tiny, teacher, tmp_path, capsys):
    for more in ([], ["--token-label.source", "online"]):
        words = ["finetune", "--recipe", tiny, "--init", "scratch", "--token-label", *more]
        assert main([*words, "--dry-run", "--teacher", str(tmp_path / "nowhere")]) == 2
        assert "nowhere is not there" in last_line(capsys)
    words = ["finetune", "--recipe", tiny, *ONLINE, "online", "--dry-run", "--teacher", teacher]
    assert main(words) == 0
    assert "multiply-adds an image in each step" in capsys.readouterr().err


def test_the_run_of_score_maps_stands_for_its_file(tiny, teacher, tmp_path):
    assert main(["label", "--teacher", teacher, "--out", str(tmp_path / "label")]) == 0
    maps = ["--token-label", "--init", "scratch", "--score-maps", str(tmp_path / "label")]
    assert train("finetune", tiny, tmp_path / "run", *maps, "--epochs", "1") == 0


def test_maps_that_teach_nothing_are_said(tiny, tmp_path, capsys):
    more = [*ONLINE, "ema", "--token-label.token-weight", "0", "--dry-run"]
    assert main(["finetune", "--recipe", tiny, *more]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the maps teach nothing, set cls_target pooled or blend" in said


def test_a_run_of_another_stage_is_not_resumed(tiny, teacher, capsys):
    for stage in ("finetune", "label", "segment", "pretrain"):
        assert main([stage, "--resume", teacher]) == 2
        assert f"that is a teacher run, not {stage}" in last_line(capsys)


def test_a_teacher_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["label", "--teacher", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not there" in last_line(capsys)


def test_an_interrupt_before_there_is_a_run_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("smallvit.cli.doctor_command.doctor_command", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted before there was anything to save" in last_line(capsys)


def test_a_recipe_with_an_adopted_teacher_runs_a_second_time(tiny, teacher, tmp_path):
    recipe = yaml.safe_load(Path(tiny).read_text())
    recipe |= {"teacher": {"adopt": teacher}, "arms": ["token-labels"]}
    recipe["finetune"]["schedule"]["epochs"] = 1.0
    Path(tiny).write_text(yaml.safe_dump(recipe))
    words = ["run", tiny, "--out", str(tmp_path / "chain")]
    assert main(words) == 0
    made = (tmp_path / "chain" / "finetune-token-labels" / "result.json").read_text()
    assert main(words) == 0
    assert (tmp_path / "chain" / "finetune-token-labels" / "result.json").read_text() == made


def test_labels_that_a_teacher_had_and_the_student_has_not_are_recorded(tiny, teacher, tmp_path):
    label, run = tmp_path / "label", tmp_path / "run"
    fewer = ["--data.label-fraction", "0.1"]
    assert main(["label", "--teacher", teacher, "--out", str(label), *fewer]) == 0
    maps = ["--token-label", "--init", "scratch", "--score-maps", str(label), "--epochs", "1"]
    assert train("finetune", tiny, run, *maps, *fewer) == 0
    seen = json.loads((run / "result.json").read_text())["extra_data"]
    had = json.loads((Path(teacher) / "result.json").read_text())["num_labels"]
    assert seen == f"other labels of digits ({had} where this has {_labels(run)})"


def _labels(run: Path) -> int:
    return json.loads((run / "result.json").read_text())["num_labels"]


def test_a_label_run_that_had_only_to_be_checked_goes_on(tiny, teacher, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["label", "--teacher", teacher, "--out", str(whole)]) == 0

    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("smallvit.runs.label.spot_check", cut)
        assert main(["label", "--teacher", teacher, "--out", str(broken)]) == 130
    assert main(["label", "--resume", str(broken)]) == 0
    name = "score_maps.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
