"""A run is scored, labelled and gone on with wherever its images lie: they are known by content."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import smallvit as sv
from smallvit.cli.app import main
from smallvit.core.errors import DataError
from smallvit.data.files.config import DataConfig
from smallvit.runs.data import load_dataset
from smallvit.runs.learned import read_record
from smallvit.runs.score import evaluate_run
from smallvit.teachers.score_maps import read_score_maps

WHOLE = ["--data.label-fraction", "1", "--data.image-size", "8"]


def draw(folder: Path, numbers: range) -> Path:
    """Draw dark and bright noise by number, each picture other pixels than all others."""
    for label, name in enumerate(("dark", "bright")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            generator = np.random.default_rng([label, i])
            pixels = generator.integers(0, 120, (8, 8, 3)) + 130 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "g", range(30))


def train(stage: str, tiny: str, data: Path, out: Path, *more: str, epochs: float = 0.2) -> Path:
    words = [stage, "--recipe", tiny, "--data", str(data), *WHOLE, "--out", str(out)]
    assert main([*words, "--epochs", str(epochs), "--batch-size", "8", *more]) == 0
    return out


@pytest.fixture
def run(tiny: str, pictures: Path, tmp_path: Path) -> Path:
    return train("finetune", tiny, pictures, tmp_path / "run")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_whose_images_moved_is_scored_where_they_are(run, pictures, tmp_path, capsys):
    before = evaluate_run(run, split="test", knn=True, linear=True)
    moved = pictures.rename(tmp_path / "elsewhere")
    assert main(["eval", str(run), "--split", "test"]) == 3
    line = last_line(capsys)
    assert f"nothing is at {pictures}" in line
    assert "name their place with --data" in line
    assert main(["eval", str(run), "--split", "test", "--data", str(moved)]) == 0
    assert evaluate_run(run, split="test", knn=True, linear=True, place=moved) == before


def test_images_among_others_are_taken_out_in_the_runs_order(run, pictures, tmp_path):
    """More pictures, and those of the run in a table whose rows are shuffled."""
    before = evaluate_run(run, split="test", knn=True, linear=True).metrics
    draw(pictures, range(30, 50))
    assert evaluate_run(run, split="test", knn=True, linear=True).metrics == before
    files = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in pictures.rglob("*.png")]
    np.random.default_rng(0).shuffle(files)
    (tmp_path / "table.csv").write_text("image_path,label\n" + "\n".join(files) + "\n")
    shuffled = evaluate_run(run, split="val", place=tmp_path / "table.csv")
    assert shuffled == evaluate_run(run, split="val")


def draw_grey(folder: Path, numbers: range, top: int) -> Path:
    for i in numbers:
        values = np.random.default_rng([top, i]).integers(0, top + 1, (8, 8), dtype=np.uint16)
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def test_brighter_files_beside_those_of_a_run_do_not_change_its_scale(tiny, tmp_path):
    pictures = draw_grey(tmp_path / "g", range(60), 4095)
    run = train("finetune", tiny, pictures, tmp_path / "run")
    before = evaluate_run(run, split="test", linear=True).metrics
    draw_grey(pictures, range(60, 64), 60000)
    assert evaluate_run(run, split="test", linear=True).metrics == before


def test_a_place_that_holds_the_test_images_alone_is_enough(run, tmp_path, pictures):
    """Too few to be cut, and in some class perhaps one alone."""
    before = evaluate_run(run, split="test").metrics
    dataset = load_dataset(DataConfig(path=pictures, image_size=8))
    test = set(dataset.content_hashes["test"].tolist())
    kept: list[Path] = []
    for path in sorted(pictures.rglob("*.png")):
        single = tmp_path / "single"
        shutil.rmtree(single, ignore_errors=True)
        single.mkdir()
        shutil.copy(path, single)
        alone = load_dataset(DataConfig(path=single, image_size=8))
        if alone.content_hashes["train"][0] in test:
            kept.append(path)
    assert len(kept) == len(test)
    for path in kept:
        target = tmp_path / "test-only" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    with pytest.raises(DataError, match="split"):
        load_dataset(DataConfig(path=tmp_path / "test-only", image_size=8))
    assert evaluate_run(run, split="test", place=tmp_path / "test-only").metrics == before


def test_what_is_said_of_a_table_or_of_folders_is_not_asked_of_the_new_place(tiny, tmp_path):
    pictures = draw(tmp_path / "g", range(30))
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in pictures.rglob("*.png")]
    (tmp_path / "table.csv").write_text("picture,kind\n" + "\n".join(rows) + "\n")
    columns = ["--data.image-column", "picture", "--data.label-column", "kind"]
    run = train("finetune", tiny, tmp_path / "table.csv", tmp_path / "run", *columns)
    before = evaluate_run(run, split="test").metrics
    assert evaluate_run(run, split="test", place=pictures).metrics == before
    folders = draw(tmp_path / "h" / "first", range(30))
    draw(tmp_path / "h" / "second", range(30, 50))
    layout = ["--data.layout", "train=first,test=second"]
    run = train("finetune", tiny, tmp_path / "h", tmp_path / "other", *layout)
    before = evaluate_run(run, split="val").metrics
    assert evaluate_run(run, split="val", place=folders).metrics == before


def test_of_other_images_it_is_said_how_many_are_found(run, pictures, tmp_path, capsys):
    other = draw(tmp_path / "other", range(100, 130))
    test = read_record(run).splits["test"]
    assert main(["eval", str(run), "--split", "test", "--data", str(other)]) == 3
    assert f"0 of its {len(test.labels)} test images are at {other}" in last_line(capsys)
    for path in (pictures / "dark").iterdir():
        shutil.copy(path, other / "dark" / f"copy-{path.name}")
    assert main(["eval", str(run), "--split", "test", "--data", str(other)]) == 3
    found = int((test.labels == 1).sum())  # dark comes after bright
    assert 0 < found < len(test.labels)
    assert f"{found} of its {len(test.labels)} test images are at {other}" in last_line(capsys)


def test_images_of_another_class_are_refused(run, pictures, tmp_path, capsys):
    names = ["dark", "bright"]
    for name, other in zip(names, reversed(names), strict=True):
        shutil.copytree(pictures / name, tmp_path / "swapped" / other)
    assert main(["eval", str(run), "--data", str(tmp_path / "swapped")]) == 3
    assert "images have another class at" in last_line(capsys)


def as_older(run: Path) -> Path:
    """Make a run one of before runs kept their images' hashes."""
    (run / "learned.npz").unlink()
    return run


def test_an_older_run_is_scored_elsewhere_if_all_is_the_same(run, pictures, tmp_path, capsys):
    before = evaluate_run(as_older(run))
    moved = pictures.rename(tmp_path / "elsewhere")
    assert evaluate_run(run, place=moved) == before
    draw(moved, range(30, 50))
    assert main(["eval", str(run), "--data", str(moved)]) == 3
    assert "or their splits, are not those that it had" in last_line(capsys)


def test_a_leaderboard_takes_moved_images_and_leaves_other_runs_where_they_are(
    run, tiny, pictures, tmp_path, capsys
):
    stays = tmp_path / "stays"
    words = ["finetune", "--recipe", tiny, "--epochs", "0.1", "--out", str(stays)]
    assert main(words) == 0
    moved = pictures.rename(tmp_path / "elsewhere")
    assert main(["bench", str(run), str(stays), "--data", str(moved), "--probes"]) == 0
    assert "left out" not in capsys.readouterr().err
    board = json.loads((tmp_path / "runs" / "leaderboard" / "leaderboard.json").read_text())
    assert {row["dataset"] for row in board["rows"]} == {"g", "digits"}
    assert main(["bench", str(run)]) == 3
    assert "name their place with --data" in capsys.readouterr().err
    made = sv.bench([run], data=moved, out=tmp_path / "board")
    assert made.leaderboard.entries[0].n_test == len(read_record(run).splits["test"].labels)
    with pytest.raises(DataError, match="none of 1 runs could be scored"):
        sv.bench([run], data=draw(tmp_path / "other", range(100, 130)), out=tmp_path / "board")


def interrupted(run: Path) -> Path:
    result = json.loads((run / "result.json").read_text()) | {"status": "interrupted"}
    (run / "result.json").write_text(json.dumps(result))
    return run


def test_a_run_goes_on_where_its_images_are(run, pictures, tmp_path, capsys):
    interrupted(run)
    moved = pictures.rename(tmp_path / "elsewhere")
    assert main(["finetune", "--resume", str(run)]) == 3
    assert "--data" in last_line(capsys)
    other = draw(tmp_path / "other", range(25, 55))
    assert main(["finetune", "--resume", str(run), "--data", str(other)]) == 3
    line = last_line(capsys)
    assert f"--resume {run}: other is not the data that it was trained on" in line
    assert "(10 of its 60 images are there, among 60)" in line
    assert main(["finetune", "--resume", str(run), "--data", str(moved)]) == 0
    assert json.loads((run / "result.json").read_text())["status"] == "completed"


def test_what_a_recipe_says_of_its_data_stays_where_they_moved(tiny, pictures, tmp_path):
    """Mirroring is set in the recipe: naming the new place must not forget it."""
    run = train("finetune", tiny, pictures, tmp_path / "run", "--data.no-hflip")
    moved = pictures.rename(tmp_path / "elsewhere")
    assert main(["finetune", "--resume", str(interrupted(run)), "--data", str(moved)]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["hflip"] is False


def test_a_teacher_labels_images_that_moved(tiny, pictures, tmp_path):
    teacher = train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8)
    moved = pictures.rename(tmp_path / "elsewhere")
    words = ["label", "--teacher", str(teacher), "--data", str(moved)]
    assert main([*words, "--out", str(tmp_path / "label")]) == 0
    maps, _ = read_score_maps(tmp_path / "label" / "score_maps.safetensors")
    assert len(maps.prob) == len(read_record(teacher).splits["labelled"].labels)
    sv.label(teacher, data=moved, out=tmp_path / "again")
    assert (tmp_path / "again" / "score_maps.safetensors").is_file()


def test_a_segmentation_is_scored_where_its_images_are(tmp_path, capsys):
    data = tmp_path / "shapes"
    for number, split in enumerate(("train", "val", "test")):
        pictures = sorted(draw(tmp_path / split, range(4 * number, 4 * number + 4)).rglob("*.png"))
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
        for i, path in enumerate(pictures):
            shutil.copy(path, data / "images" / split / f"{i}.png")
            mask = np.zeros((8, 8), dtype=np.uint8)
            mask[: 4 + i % 2] = 1
            Image.fromarray(mask).save(data / "masks" / split / f"{i}.png")
    run, words = tmp_path / "run", ["--head", "linear", "--epochs", "1", "--batch-size", "4"]
    words += ["--model.patch-size", "2", "--model.embed-dim", "16", "--model.depth", "2"]
    words += ["--model.num-heads", "2", "--data.image-size", "8", "--out", str(run)]
    assert main(["segment", "--data", str(data), *words]) == 0
    before, moved = evaluate_run(run), data.rename(tmp_path / "elsewhere")
    assert main(["eval", str(run)]) == 3
    assert "name their place with --data" in last_line(capsys)
    assert evaluate_run(run, place=moved) == before
    (moved / "images" / "val" / "0.png").write_bytes((moved / "images/val/1.png").read_bytes())
    assert main(["eval", str(run), "--data", str(moved)]) == 3
    assert "(23 of its 24 images are there, among 24)" in last_line(capsys)
