"""Data of the user's own through the command line: tables, images without labels, mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from smallvit.cli.app import main


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Bright and dark noise, 30 each, in one folder without class folders."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(7)  # whose cut gives each class some of each split
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


def test_images_without_labels_are_enough_for_stage_1(tiny, tmp_path, pictures, capsys):
    arguments = ["--recipe", tiny, "--data", str(pictures), "--data.label-fraction", "1"]
    assert main(["pretrain", *arguments, "--out", str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert "--data IMAGES-WITH-LABELS" in capsys.readouterr().err
    assert result(tmp_path / "run")["status"] == "completed"
    assert not [name for name in result(tmp_path / "run")["metrics"] if name.startswith("val/")]
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["dataset"]["counts"] == {"train": 60, "labelled": 0, "val": 0, "test": 0}


@pytest.mark.parametrize("stage", ["teacher", "finetune", "run"])
def test_what_needs_labels_refuses_images_without(tiny, pictures, capsys, stage):
    words = [stage, tiny] if stage == "run" else [stage, "--recipe", tiny]
    assert main([*words, "--data", str(pictures)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"pictures has no labels, and `smallvit {stage}` needs them: put the images" in line


def test_stage_2_of_a_table_continues_from_stage_1_of_its_images(
    tiny, tmp_path, pictures, table, capsys
):
    ssl = ["pretrain", "--recipe", tiny, "--data", str(pictures), "--out", str(tmp_path / "ssl")]
    assert main([*ssl, "--epochs", "1"]) == 0
    tune = ["finetune", "--recipe", tiny, "--data", str(table), "--init", str(tmp_path / "ssl")]
    more = ["--data.label-fraction", "1", "--augment.policy", "trivialaugment", "--epochs", "30"]
    assert main([*tune, "--out", str(tmp_path / "run"), *more]) == 0
    said = "pictures (with 7 of the 7 val images and 16 of the 16 test images)"
    assert result(tmp_path / "run")["extra_data"] == said
    assert "the accuracy may be too high" in capsys.readouterr().err
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


def test_relative_paths_of_a_recipe_start_at_its_folder(tiny, tmp_path, table, monkeypatch):
    recipe = yaml.safe_load(Path(tiny).read_text()) | {"data": {"path": "table.csv"}}
    (tmp_path / "relative.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir("/")
    run = tmp_path / "run"
    words = ["finetune", "--recipe", str(tmp_path / "relative.yaml"), "--epochs", "1"]
    assert main([*words, "--out", str(run)]) == 0
    assert main(["eval", str(run), "--split", "test"]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["path"] == str(table)


def test_other_data_takes_nothing_that_the_recipe_says_of_its_own(tiny, tmp_path, table):
    recipe = yaml.safe_load(Path(tiny).read_text())
    recipe["data"] = {"path": str(table), "image_column": "image_path", "hflip": True}
    path = tmp_path / "columns.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["pretrain", "--recipe", str(path), "--dataset", "digits", "--dry-run"]) == 0


def test_repeats_beyond_the_epochs_are_said(tiny, tmp_path, capsys):
    words = ["finetune", "--recipe", tiny, "--augment.repeats", "4", "--epochs", "1", "--dry-run"]
    assert main(words) == 0
    assert "sees only 24 % of the images" in capsys.readouterr().err
    # One step of a batch that is larger than the data: what is said counts its samples.
    assert main([*words, "--batch-size", "512"]) == 0
    assert "sees only 49 % of the images: it takes 512 samples" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_that_saw_labels_of_held_out_images_is_refused(tiny, tmp_path, table, capsys):
    first = ["finetune", "--recipe", tiny, "--data", str(table), "--epochs", "1"]
    assert main([*first, "--out", str(tmp_path / "first")]) == 0
    renamed = tmp_path / "renamed.csv"  # the same pictures but one, under another name
    renamed.write_text(table.read_text().rpartition("\n")[0])
    again = [
        "finetune",
        "--recipe",
        tiny,
        "--data",
        str(renamed),
        "--init",
        str(tmp_path / "first"),
        "--data.split-seed",
        "7",
    ]
    assert main(again) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "learned the labels of" in line
    assert "val images" in line
    assert "of renamed: train it again on this data, or pass --allow-leak" in line


def test_a_start_whose_images_are_gone_is_taken_with_a_warning(tiny, tmp_path, pictures, capsys):
    ssl = ["pretrain", "--recipe", tiny, "--data", str(pictures), "--out", str(tmp_path / "ssl")]
    assert main([*ssl, "--epochs", "0.5"]) == 0
    shutil.rmtree(pictures)
    (tmp_path / "ssl" / "learned.npz").unlink()  # as a run of before there were such files
    tune = ["finetune", "--recipe", tiny, "--init", str(tmp_path / "ssl"), "--epochs", "0.2"]
    assert main([*tune, "--dataset", "digits", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "whether validation or test images of digits are among them cannot be told" in said
    assert result(tmp_path / "run")["extra_data"] == "pictures"


def test_a_start_of_other_images_is_named_and_no_more(tiny, tmp_path, pictures, capsys):
    ssl = ["pretrain", "--recipe", tiny, "--data", str(pictures), "--out", str(tmp_path / "ssl")]
    assert main([*ssl, "--epochs", "0.5"]) == 0
    capsys.readouterr()
    tune = ["finetune", "--recipe", tiny, "--init", str(tmp_path / "ssl"), "--epochs", "0.2"]
    assert main([*tune, "--dataset", "digits", "--out", str(tmp_path / "run")]) == 0
    assert "which holds" not in capsys.readouterr().err
    assert result(tmp_path / "run")["extra_data"] == "pictures"


def sort_into_classes(pictures: Path) -> None:
    for i, path in enumerate(sorted(pictures.glob("*.png"))):
        folder = pictures / ("dark", "bright")[i % 2]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


def test_runs_and_sheets_below_the_images_are_no_classes(
    tiny, tmp_path, pictures, capsys, monkeypatch
):
    sort_into_classes(pictures)
    monkeypatch.chdir(pictures)
    monkeypatch.delenv("SMALLVIT_RUNS_DIR", raising=False)
    ssl = ["pretrain", "--recipe", tiny, "--data", ".", "--epochs", "0.2"]
    assert main([*ssl, "--out", "runs/start"]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "read as class folders: 2 classes (bright, dark), images train" in said
    assert "lies below the images of --data: it is passed over" in said
    assert main(["data", "show", ".", "--num", "4"]) == 0
    assert "contact-sheets/pictures/images.png" in capsys.readouterr().out
    following = ["finetune", "--init", "runs/start", "--epochs", "0.2"]
    assert main(following) == 0
    (run,) = (pictures / "runs" / "pictures").glob("*-finetune-*")
    env = json.loads((run / "env.json").read_text())
    assert env["dataset"]["class_names"] == ["bright", "dark"]
    assert "passed over: pictures drawn by smallvit (3); runs/start, written by smallvit" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    assert main(["data", "check", "."]) == 0


def test_results_among_the_images_are_refused_before_any_work(tiny, pictures, capsys):
    sort_into_classes(pictures)
    arguments = ["pretrain", "--recipe", tiny, "--data", str(pictures), "--epochs", "0.2", "--out"]
    for out in ("dark", "dark/run", "dark/deep/run"):
        assert main([*arguments, str(pictures / out)]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"lies in {pictures}/dark, which holds images" in line
    remedy = line.rpartition("as in --out ")[2]
    assert main([*arguments, str(pictures)]) == 2
    assert f"as in --out {pictures}/run1" in capsys.readouterr().err
    for out in (remedy, str(pictures / "run1")):
        assert main([*arguments, out]) == 0


def test_sheets_replace_no_picture_of_the_users(tiny, pictures, capsys):
    sort_into_classes(pictures)
    (pictures / "dark" / "00.png").rename(pictures / "dark" / "views.png")
    show = ["data", "show", str(pictures), "--recipe", tiny, "--num", "4", "--out"]
    assert main([*show, str(pictures / "dark")]) == 2
    assert "dark/views.png is no contact sheet: give another --out" in capsys.readouterr().err
    for _ in range(2):
        assert main([*show, str(pictures / "sheets")]) == 0


def test_a_layout_works_from_the_command_line_a_recipe_and_python(tiny, tmp_path, pictures, capsys):
    import smallvit as sv

    sort_into_classes(pictures)
    for split in ("training_set", "test_set"):
        shutil.copytree(pictures, tmp_path / "all" / split)
    data = str(tmp_path / "all")
    assert main(["finetune", "--recipe", tiny, "--data", data]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--data.layout train=training_set,test=test_set; if they are classes" in line
    layout = "train=training_set,test=test_set"
    words = [
        "teacher",
        "--recipe",
        tiny,
        "--data",
        data,
        "--epochs",
        "0.2",
        "--data.layout",
        layout,
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "split folders training_set, test_set: 2 classes" in capsys.readouterr().err
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["data"]["layout"] == layout
    again = sv.teacher(
        recipe=tiny, data={"path": data, "layout": layout}, epochs=0.2, out=tmp_path / "again"
    )
    assert (
        again.env["dataset"]["counts"]
        == json.loads((tmp_path / "run" / "env.json").read_text())["dataset"]["counts"]
    )
    assert main(["eval", str(tmp_path / "run"), "--split", "test"]) == 0


def test_an_unlabelled_test_folder_stops_no_stage_and_is_said(tiny, tmp_path, pictures, capsys):
    sort_into_classes(pictures)
    shutil.copytree(pictures, tmp_path / "comp" / "train")
    shutil.copytree(pictures / "dark", tmp_path / "comp" / "test")
    for stage in ("pretrain", "finetune"):
        words = [stage, "--recipe", tiny, "--data", str(tmp_path / "comp"), "--epochs", "0.2"]
        assert main([*words, "--out", str(tmp_path / stage)]) == 0
        assert "left out: test, whose 30 images lie in no class folder" in capsys.readouterr().err
    assert main([*words, "--data.layout", "train=train,test=test", "--dry-run"]) == 3
    remedy = "or leave a split out, as in --data.layout train=train"
    assert remedy in capsys.readouterr().err.replace("\n", " ")
    assert main([*words, "--data.layout", "train=train", "--dry-run"]) == 0


def test_a_layout_is_not_for_a_known_data_set(tiny, capsys):
    words = ["pretrain", "--recipe", tiny, "--dataset", "digits", "--data.layout", "classes"]
    assert main([*words, "--dry-run"]) == 2
    assert "data.layout is for images of your own, not for digits" in capsys.readouterr().err


def test_medmnist_trains_as_it_ships(tiny, tmp_path, capsys):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(tmp_path / "blood.npz", **arrays)
    words = ["finetune", "--recipe", tiny, "--data", str(tmp_path / "blood.npz"), "--epochs", "0.2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "blood: read as arrays: 2 classes (0, 1), images train 40, val 8, test 8" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def test_a_run_of_several_stages_says_once_how_its_images_were_read(
    tiny, tmp_path, pictures, capsys
):
    sort_into_classes(pictures)
    (pictures / "__MACOSX").mkdir()
    recipe = yaml.safe_load(Path(tiny).read_text()) | {"arms": ["scratch", "ssl"]}
    recipe["finetune"]["schedule"] = {"epochs": 0.5}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe))
    words = ["run", str(tmp_path / "two.yaml"), "--data", str(pictures)]
    assert main([*words, "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("read as class folders") == 1
    assert said.count("passed over: folder __MACOSX (1)") == 1
