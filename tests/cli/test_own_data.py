"""Data of the user's own through the command line: tables, images without labels, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.cli.app import main


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright and dark noise, 30 each, in one folder without class folders."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(60):
        pixels = generator.integers(0, 128, (8, 8, 3), dtype=np.uint8) + 120 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def table(pictures: Path) -> Path:
    path = pictures.parent / "table.csv"
    rows = [f"pictures/{i:02}.png,{('dark', 'bright')[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["image_path,label", *rows]))
    return path


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_images_without_labels_are_enough_for_stage_1(tiny, tmp_path, pictures):
    arguments = ["--recipe", tiny, "--data", str(pictures), "--data.label-fraction", "1"]
    assert main(["pretrain", *arguments, "--out", str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert result(tmp_path / "run")["status"] == "completed"
    assert result(tmp_path / "run")["metrics"] == {}
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["dataset"]["counts"] == {"train": 60, "labelled": 0, "val": 0, "test": 0}


@pytest.mark.parametrize("stage", ["teacher", "finetune", "run"])
def test_what_needs_labels_refuses_images_without(tiny, pictures, capsys, stage):
    words = [stage, tiny] if stage == "run" else [stage, "--recipe", tiny]
    assert main([*words, "--data", str(pictures)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"pictures has no labels, and `smallvit {stage}` needs them: put the images" in line


def test_stage_2_of_a_table_continues_from_stage_1_of_its_images(tiny, tmp_path, pictures, table):
    ssl = ["pretrain", "--recipe", tiny, "--data", str(pictures), "--out", str(tmp_path / "ssl")]
    assert main([*ssl, "--epochs", "1"]) == 0
    tune = ["finetune", "--recipe", tiny, "--data", str(table), "--init", str(tmp_path / "ssl")]
    more = ["--data.label-fraction", "1", "--augment.policy", "trivialaugment", "--epochs", "30"]
    assert main([*tune, "--out", str(tmp_path / "run"), *more]) == 0
    assert result(tmp_path / "run")["extra_data"] == "pictures"
    assert result(tmp_path / "run")["metrics"]["val/top1"] > 0.9
    assert main(["eval", str(tmp_path / "run"), "--split", "test"]) == 0


def test_a_mistake_in_a_table_ends_before_any_work(tiny, tmp_path, table, capsys):
    table.write_text(table.read_text() + "\npictures/99.png,dark")
    assert main(["finetune", "--recipe", tiny, "--data", str(table)]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of 61 files not found: pictures/99.png (line 62): paths are relative to" in line
    assert not (tmp_path / "runs").exists()


def test_an_image_in_two_splits_is_said_and_counted(tiny, tmp_path, pictures, capsys):
    rows = [f"{i:02}.png,{'ab'[i % 2]},{'test' if i > 50 else 'train'}" for i in range(60)]
    (pictures / "copy.png").write_bytes((pictures / "03.png").read_bytes())
    table = pictures / "table.csv"
    table.write_text("\n".join(["image_path,label,split", *rows, "copy.png,b,test"]))
    arguments = ["teacher", "--recipe", tiny, "--data", str(table), "--epochs", "0.2"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "1 of 10 test images are also in train (same pixels)" in said
    assert "up to 10 points too high" in said
    (note,) = json.loads((tmp_path / "run" / "env.json").read_text())["dataset"]["notes"]
    assert note in said.replace("\n", " ")


def test_a_table_given_to_python_is_found_again_from_another_folder(
    tiny, tmp_path, pictures, table, monkeypatch
):
    import smallvit as sv

    run = sv.pretrain(recipe=tiny, data={"path": "table.csv"}, epochs=0.5, out=tmp_path / "run")
    assert run.recipe["data"]["path"] == str(table)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["pretrain", "--recipe", "../run/recipe.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("words", [["--data", "hf:a/b@main"], ["--dataset", "hf:a/b@main"]])
def test_a_data_set_of_the_hub_needs_its_commit(tiny, capsys, words):
    assert main(["pretrain", "--recipe", tiny, *words]) == 2
    assert "hf:a/b@main" in capsys.readouterr().err
