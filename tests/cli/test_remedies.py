"""The step that a message about a run names works in the very state that it is said in."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm import create_model
from timm.models import save_for_hf

from smallvit.cli.app import main
from smallvit.core.run_folder import hold_folder

WHOLE = ["--data.label-fraction", "1", "--data.image-size", "8"]
SHORT = ["--epochs", "0.2", "--batch-size", "8"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of dark and bright noise, 30 each."""
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "g" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.random.default_rng([label, i]).integers(0, 120, (8, 8, 3)) + 130 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "g" / name / f"{i}.png")
    return tmp_path / "g"


def train(stage: str, tiny: str, data: Path, out: Path, *, epochs: float = 0.2) -> Path:
    words = [stage, "--recipe", tiny, "--data", str(data), *WHOLE, "--out", str(out)]
    assert main([*words, "--epochs", str(epochs), "--batch-size", "8"]) == 0
    return out


@pytest.fixture
def run(tiny: str, pictures: Path, tmp_path: Path) -> Path:
    return train("finetune", tiny, pictures, tmp_path / "runs" / "g" / "run")


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def follow(line: str) -> int:
    """Do the command that a message names."""
    found = re.search(r"smallvit (\w+ --(?:resume|teacher|from) [^ :`]+)", line)
    assert found is not None, line
    return main(shlex.split(found[1]))


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_any_file_of_the_weights_names_the_run_or_its_export(run, tmp_path):
    shutil.copytree(run / "export", tmp_path / "copy")
    for number, start in enumerate(
        (run / "export", run / "export" / "model.safetensors", tmp_path / "copy/model.safetensors")
    ):
        out = tmp_path / f"out-{number}"
        words = ["finetune", "--init", str(start), "--data", str(tmp_path / "g"), *SHORT]
        assert main([*words, "--data.image-size", "8", "--out", str(out)]) == 0
        assert result(out)["init"] == ("weights" if number == 2 else "finetune")


@pytest.mark.parametrize("option", ["finetune --init", "teacher --from", "label --teacher", "eval"])
def test_what_is_no_run_is_named_with_what_to_name_instead(option, run, tmp_path, capsys):
    (tmp_path / "dead").symlink_to("/nowhere/else")
    said = {
        run / "checkpoints" / "last.pt": f"is a part of a run: name the run, {run}, whose export",
        run / "recipe.yaml": f"is a part of a run: name the run, {run}",
        run.parent: f"holds runs and is none: name one, such as the newest, {run}",
        tmp_path / "dead": "is a link to /nowhere/else, which is not there",
        tmp_path / "nowhere": "is not there: 'smallvit runs ls' shows the runs that are",
        tmp_path / "tiny.yaml": "is a file, no run and no export: `smallvit convert`",
    }
    for start, text in said.items():
        line = refused(capsys, 2, *option.split(), start)
        assert f"{start} {text}" in line


def test_a_network_of_timms_becomes_a_start_as_the_message_says(pictures, tmp_path):
    save_for_hf(create_model("test_vit"), str(tmp_path / "made"), safe_serialization=True)
    words = ["finetune", "--init", str(tmp_path / "made"), "--data", str(pictures), *SHORT]
    assert main([*words, "--data.image-size", "16", "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("stage", ["pretrain", "teacher", "finetune"])
def test_a_finished_run_without_its_export_writes_it_again(stage, tiny, pictures, tmp_path, capsys):
    run = train(stage, tiny, pictures, tmp_path / "run")
    before, kept = (run / "export" / "model.safetensors").read_bytes(), result(run)
    shutil.rmtree(run / "export")
    line = refused(capsys, 3, "finetune", "--init", run, *SHORT)
    assert follow(line) == 0
    assert (run / "export" / "model.safetensors").read_bytes() == before
    assert result(run) | {"wall_s": 0} == kept | {"wall_s": 0}


def test_an_adopted_teacher_without_its_export_writes_it_again(tiny, pictures, tmp_path, capsys):
    teacher = train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8)
    adopted = tmp_path / "adopted"
    assert main(["teacher", "--from", str(teacher), "--out", str(adopted)]) == 0
    shutil.rmtree(adopted / "export")
    assert follow(refused(capsys, 3, "label", "--teacher", adopted)) == 0
    assert main(["label", "--teacher", str(adopted)]) == 0


def test_maps_that_are_gone_or_broken_are_written_again(tiny, pictures, tmp_path, capsys):
    teacher = train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8)
    maps = tmp_path / "maps"
    assert main(["label", "--teacher", str(teacher), "--out", str(maps)]) == 0
    file = maps / "score_maps.safetensors"
    before = file.read_bytes()
    use = ["finetune", "--recipe", tiny, "--data", pictures, *WHOLE, *SHORT, "--token-label"]
    file.write_bytes(before[:500])
    line = refused(capsys, 3, *use, "--score-maps", maps)
    assert "remove it, then smallvit label --resume" in line
    file.unlink()
    assert follow(line) == 0
    assert file.read_bytes() == before
    file.unlink()
    assert follow(refused(capsys, 2, *use, "--score-maps", maps)) == 0
    line = refused(capsys, 2, *use, "--score-maps", teacher)
    assert "is a teacher run: `smallvit label --teacher" in line
    assert follow(line) == 0
    assert "is not there: smallvit label" in refused(capsys, 2, *use, "--score-maps", "nowhere")


def test_a_complete_run_names_what_a_longer_one_starts_from(tiny, run, pictures, tmp_path, capsys):
    assert f"--init {run} starts a new run" in refused(capsys, 2, "finetune", "--resume", run)
    words = ["finetune", "--init", str(run), *SHORT, "--out", str(tmp_path / "longer")]
    assert main(words) == 0
    line = refused(capsys, 2, "pretrain", "--resume", run)
    assert f"that is a finetune run, not pretrain: smallvit finetune --resume {run}" in line
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints")
    line = refused(capsys, 3, "finetune", "--resume", run)
    assert f"repeat it with --recipe {run / 'recipe.yaml'}" in line
    again = ["finetune", "--recipe", str(run / "recipe.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0


def test_an_unfinished_run_says_why_and_is_finished(run, capsys):
    for status, said in (("failed", "failed (loss is NaN): mend that"), ("running", "cut short")):
        changed = result(run) | {"status": status, "error": "loss is NaN"}
        (run / "result.json").write_text(json.dumps(changed))
        line = refused(capsys, 3, "eval", run)
        assert said in line
    with hold_folder(run):
        assert "is at work: wait for its end" in refused(capsys, 3, "eval", run)
    assert follow(line) == 0
    assert main(["eval", str(run)]) == 0


def test_a_folder_that_is_taken_names_what_can_be_done_with_it(tiny, run, pictures, capsys):
    words = ["finetune", "--recipe", tiny, "--data", pictures, *WHOLE, *SHORT, "--out"]
    line = refused(capsys, 2, *words, run)
    assert f"{run} holds a run: replace it with --overwrite" in line
    assert "--resume" not in line, "it is complete"
    (run / "result.json").write_text("{")
    assert "replace it with --overwrite" in refused(capsys, 2, *words, run)
    assert main([*map(str, words), str(run), "--overwrite"]) == 0
    (run.parent / "notes").mkdir()
    (run.parent / "notes" / "thesis.tex").write_text("x")
    line = refused(capsys, 2, *words, run.parent / "notes")
    assert "is no run, and is not empty: choose another --out" in line
    assert "is a file, and a run needs a folder" in refused(capsys, 2, *words, tiny)


def test_a_runs_folder_that_is_a_dead_link_is_said(tiny, pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "dead").symlink_to("/nowhere/runs")
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "dead"))
    train_it = ["finetune", "--recipe", tiny, "--data", pictures, *WHOLE, *SHORT]
    for words in (train_it, ["runs", "ls"], ["bench"], ["finetune", "--token-label"]):
        line = refused(capsys, 3, *words)
        assert f"{tmp_path / 'dead'} is a link to /nowhere/runs, which is not there" in line
    (tmp_path / "dead").unlink()
    assert main([*map(str, train_it)]) == 0


def test_a_teacher_of_another_image_size_is_adopted_as_the_message_says(
    tiny, pictures, tmp_path, capsys
):
    teacher = train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8)
    line = refused(capsys, 2, "label", "--teacher", teacher, "--data.image-size", "16")
    assert "was trained on images of 8 px, these have 16" in line
    assert main(["teacher", *line.partition("smallvit teacher ")[2].split()]) == 0


def test_allow_leak_is_taken_where_a_message_names_it(tiny, pictures, tmp_path, capsys):
    teacher = train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8)
    other = ["--data.split-seed", "5"]
    line = refused(capsys, 2, "label", "--teacher", teacher, *other)
    assert "or pass --allow-leak" in line
    assert main(["label", "--teacher", str(teacher), *other, "--allow-leak"]) == 0
