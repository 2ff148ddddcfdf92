"""What a run learned is kept in it: no later run is scored on that, wherever the images lie."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from smallvit.cli.app import main
from smallvit.core.run_folder import Run
from smallvit.data.files import fetch
from smallvit.data.files.config import DataConfig
from smallvit.runs.data import load_dataset
from smallvit.runs.learned import Learned, find_record, read_record, write_learned

WHOLE = ["--data.label-fraction", "1", "--data.image-size", "8"]


def draw(folder: Path, numbers: range, names: tuple[str, ...] = ("dark", "bright")) -> Path:
    """Draw noise by number and class, each picture other pixels than all others."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            generator = np.random.default_rng([label, i])
            pixels = generator.integers(0, 120, (8, 8, 3)) + 130 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "g", range(30))


def train(stage: str, tiny: str, data: Path, out: Path, *more: object, epochs: float = 0.2) -> int:
    words = [stage, "--recipe", tiny, "--data", str(data), *WHOLE, "--out", str(out)]
    return main([*words, "--epochs", str(epochs), "--batch-size", "8", *map(str, more)])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_a_run_keeps_what_it_learned_and_its_splits(tiny, pictures, tmp_path):
    assert train("finetune", tiny, pictures, tmp_path / "run") == 0
    record = read_record(tmp_path / "run")
    dataset = load_dataset(DataConfig(path=pictures, image_size=8))
    assert set(record.own.labelled) == set(dataset.content_hashes["labelled"])
    assert not len(record.own.unlabelled) + len(record.earlier.labelled)
    for split in ("train", "labelled", "val", "test"):
        assert list(record.splits[split].contents) == list(dataset.content_hashes[split])


@pytest.mark.parametrize("later", ["finetune", "pretrain"])
def test_labels_of_held_out_images_are_no_start(later, tiny, pictures, tmp_path, capsys):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    draw(pictures, range(30, 36))
    other = ["--data.split-seed", "5", "--init", tmp_path / "first"]
    assert train(later, tiny, pictures, tmp_path / "second", *other) == 2
    line = last_line(capsys)
    assert f"--init {tmp_path / 'first'} learned the labels of " in line
    assert " test images of g: train it again on this data, or pass --allow-leak" in line
    assert not (tmp_path / "second").exists()
    assert train(later, tiny, pictures, tmp_path / "second", *other, "--allow-leak") == 0
    extra = result(tmp_path / "second")["extra_data"]
    assert extra.startswith("g (with ")
    assert extra.endswith(" test images) (shares images: --allow-leak)")
    third = ["--data.split-seed", "5", "--init", tmp_path / "second"]
    assert train("finetune", tiny, pictures, tmp_path / "third", *third) == 0, "asked once"
    assert result(tmp_path / "third")["extra_data"] == extra


def test_what_was_learned_is_known_when_the_folder_is_gone(tiny, pictures, tmp_path, capsys):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    moved = pictures.rename(tmp_path / "h")
    other = ["--data.split-seed", "5", "--init", tmp_path / "first"]
    assert train("finetune", tiny, moved, tmp_path / "second", *other) == 2
    assert "learned the labels of" in last_line(capsys)
    same = ["--init", tmp_path / "first"]
    assert train("finetune", tiny, moved, tmp_path / "second", *same) == 0
    assert result(tmp_path / "second")["extra_data"] == "none"


def test_pictures_that_went_from_train_to_test_are_counted(tiny, tmp_path, capsys):
    data = tmp_path / "g"
    for number, split in enumerate(("train", "val", "test")):
        draw(data / split, range(10 * number, 10 * number + 10))
    assert train("finetune", tiny, data, tmp_path / "first") == 0
    for i in range(3):
        (data / "train" / "dark" / f"{i}.png").rename(data / "test" / "dark" / f"{i}.png")
    assert train("finetune", tiny, data, tmp_path / "second", "--init", tmp_path / "first") == 2
    assert "learned the labels of 3 of the 23 test images of g" in last_line(capsys)


def test_what_a_run_builds_on_counts_as_well(tiny, pictures, tmp_path, capsys):
    """A chain through other data, whose folders are all gone but the last."""
    between = draw(tmp_path / "between", range(100, 130))
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    init = ["--init", tmp_path / "first"]
    assert train("pretrain", tiny, between, tmp_path / "second", *init) == 0
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(between)
    other = ["--data.split-seed", "5", "--init", tmp_path / "second"]
    assert train("finetune", tiny, pictures, tmp_path / "third", *other) == 2
    assert f"--init {tmp_path / 'second'} learned the labels of" in last_line(capsys)


def test_images_learned_without_labels_in_other_data_are_said_and_recorded(
    tiny, pictures, tmp_path, capsys
):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in pictures.rglob("*.png"):
        shutil.copy(path, bare / f"{path.parent.name}-{path.name}")
    draw(tmp_path / "more", range(100, 110), ("dark",))
    for path in (tmp_path / "more" / "dark").iterdir():
        path.rename(bare / path.name)
    assert train("pretrain", tiny, bare, tmp_path / "first") == 0
    assert train("finetune", tiny, pictures, tmp_path / "second", "--init", tmp_path / "first") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "was pretrained without labels on" in said
    extra = result(tmp_path / "second")["extra_data"]
    assert extra.startswith("bare (with ")
    assert "test images" in extra
    third = ["--init", tmp_path / "second"]
    assert train("finetune", tiny, pictures, tmp_path / "third", *third) == 0
    assert result(tmp_path / "third")["extra_data"] == extra


def test_stage_1_on_another_split_of_the_same_data_is_refused(tiny, pictures, tmp_path, capsys):
    assert train("pretrain", tiny, pictures, tmp_path / "first") == 0
    other = ["--data.split-seed", "5", "--init", tmp_path / "first"]
    assert train("finetune", tiny, pictures, tmp_path / "second", *other) == 2
    line = last_line(capsys)
    assert "was pretrained without labels on" in line
    assert "use its data.split_seed and fractions, or pass --allow-leak" in line
    same = ["--data.split-seed", "0", "--init", tmp_path / "first"]
    assert train("finetune", tiny, pictures, tmp_path / "second", *same) == 0


def test_stage_1_on_another_split_is_refused_under_whatever_name(tiny, pictures, tmp_path, capsys):
    first = tmp_path / "first"
    assert train("pretrain", tiny, pictures, first, "--data.split-seed", "1") == 0
    moved = pictures.rename(tmp_path / "g2")
    other = ["--data.split-seed", "0", "--init", first]
    assert train("finetune", tiny, moved, tmp_path / "second", *other) == 2
    assert "was pretrained without labels on" in last_line(capsys)
    shutil.copytree(moved, tmp_path / "g3")
    draw(tmp_path / "g3", range(100, 170))
    assert train("pretrain", tiny, tmp_path / "g3", tmp_path / "wide") == 0
    wide = ["--data.split-seed", "3", "--init", tmp_path / "wide", "--dry-run"]
    assert train("finetune", tiny, moved, tmp_path / "third", *wide) == 0, "other data, mostly"


def test_an_older_run_had_the_labels_of_its_own_data(tiny, pictures, tmp_path):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    first = as_older(tmp_path / "first")
    dataset = load_dataset(DataConfig(path=pictures, image_size=8, label_fraction=0.3))
    whole = load_dataset(DataConfig(path=pictures, image_size=8))
    everything = set(whole.content_hashes["train"].tolist())
    record = find_record(Run(first), dataset)
    assert record is not None
    assert set(record.learned.labelled.tolist()) == everything
    pictures.rename(tmp_path / "gone")
    record = find_record(Run(first), dataset)
    assert record is not None
    assert set(record.learned.labelled.tolist()) == everything


def test_a_teacher_of_what_is_held_out_is_refused_to_label_and_to_be_adopted(
    tiny, pictures, tmp_path, capsys
):
    assert train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8) == 0
    other = ["--data", str(pictures), *WHOLE, "--data.split-seed", "5"]
    assert main(["label", "--teacher", str(tmp_path / "teacher"), *other]) == 2
    assert "--teacher " in (line := last_line(capsys))
    assert "learned the labels of" in line
    assert main(["teacher", "--from", str(tmp_path / "teacher"), *other]) == 2
    assert "--from " in (line := last_line(capsys))
    assert "learned the labels of" in line


def test_maps_of_a_teacher_that_knew_held_out_images_are_refused(tiny, pictures, tmp_path, capsys):
    assert train("teacher", tiny, pictures, tmp_path / "teacher", epochs=8) == 0
    maps = tmp_path / "label"
    assert main(["label", "--teacher", str(tmp_path / "teacher"), "--out", str(maps)]) == 0
    dataset = load_dataset(DataConfig(path=pictures, image_size=8))
    assert len(read_record(maps).learned.labelled) == len(dataset.splits["labelled"])
    use = ["--token-label", "--score-maps", maps, "--model.patch-size", "2"]
    assert train("finetune", tiny, pictures, tmp_path / "good", *use) == 0
    assert len(read_record(tmp_path / "good").earlier.labelled) == len(dataset.splits["labelled"])
    known = Learned(labelled=np.unique(dataset.content_hashes["test"][:2]))
    write_learned(maps, dataset, "nothing", known)
    assert train("finetune", tiny, pictures, tmp_path / "bad", *use) == 2
    count = len(dataset.splits["test"])
    assert f"learned the labels of 2 of the {count} test images" in last_line(capsys)


def test_masks_are_labels(tiny, tmp_path, capsys):
    data, shapes = tmp_path / "g", tmp_path / "shapes"
    for number, split in enumerate(("train", "val", "test")):
        draw(data / split, range(10 * number, 10 * number + 10))
        for kind in ("images", "masks"):
            (shapes / kind / split).mkdir(parents=True)
    for i, path in enumerate(sorted((data / "test").rglob("*.png"))):
        split = ("train", "val", "test")[min(i // 4, 2)]
        shutil.copy(path, shapes / "images" / split / f"{i}.png")
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[:4] = 1
        Image.fromarray(mask).save(shapes / "masks" / split / f"{i}.png")
    words = ["segment", "--data", str(shapes), "--data.image-size", "8", "--head", "linear"]
    words += ["--model", "vit_tiny", "--model.patch-size", "2", "--model.embed-dim", "16"]
    words += ["--model.depth", "2", "--model.num-heads", "2", "--epochs", "1", "--batch-size", "4"]
    assert main([*words, "--out", str(tmp_path / "seg")]) == 0
    capsys.readouterr()
    tune = ["--init", tmp_path / "seg"]
    assert train("finetune", tiny, data, tmp_path / "run", *tune) == 2
    assert "learned the labels of 4 of the 20 test images of g" in last_line(capsys)
    back = ["--init", str(tmp_path / "run"), "--out", str(tmp_path / "back")]
    assert train("finetune", tiny, data, tmp_path / "run", *tune, "--allow-leak") == 0
    assert main([*words, *back]) == 0, "it learned train of g, which holds none of these"
    for split in ("val", "test"):
        for i, path in enumerate(sorted((shapes / "images" / split).iterdir())[:4]):
            shutil.copy(data / "train" / "dark" / f"{i}.png", path)
    shutil.rmtree(tmp_path / "back")
    assert main([*words, *back]) == 2
    assert "4 of the 4 val images" in last_line(capsys)
    assert main([*words, *back, "--allow-leak"]) == 0, "the message names an option that is there"
    assert "--allow-leak" in result(tmp_path / "back")["extra_data"]


def as_older(run: Path) -> Path:
    """Make a run one of before runs kept what they learned."""
    (run / "learned.npz").unlink()
    return run


def test_an_older_run_is_judged_by_its_data_where_that_is_as_it_was(
    tiny, pictures, tmp_path, capsys
):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    first = as_older(tmp_path / "first")
    copied = shutil.copytree(pictures, tmp_path / "h")
    draw(copied, range(30, 36))
    other = ["--data.split-seed", "5", "--init", first]
    assert train("finetune", tiny, copied, tmp_path / "second", *other) == 2
    assert "learned the labels of" in last_line(capsys)
    draw(pictures, range(40, 46))
    assert train("finetune", tiny, pictures, tmp_path / "second", "--init", first) == 2
    line = last_line(capsys)
    assert "keeps no record of what it learned" in line
    assert "are not here as they were" in line
    assert "cannot be told: train it again on this data, or pass --allow-leak" in line
    more = ["--init", first, "--allow-leak"]
    assert train("finetune", tiny, pictures, tmp_path / "second", *more) == 0
    extra = result(tmp_path / "second")["extra_data"]
    assert extra == "g (images unknown) (shares images: --allow-leak)"


def test_an_older_run_of_a_tainted_start_is_left_out_of_a_leaderboard(
    tiny, pictures, tmp_path, capsys
):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    other = ["--data.split-seed", "5", "--init", tmp_path / "first", "--allow-leak"]
    assert train("finetune", tiny, pictures, tmp_path / "second", *other) == 0
    as_older(tmp_path / "second")
    assert main(["bench", str(tmp_path / "second")]) == 0, "recorded, so it is shown as that"
    changed = result(tmp_path / "second") | {"extra_data": "none"}
    (tmp_path / "second" / "result.json").write_text(json.dumps(changed))
    capsys.readouterr()
    assert main(["bench", str(tmp_path / "second")]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "left out: " in said
    assert "that it is scored on: train it again from a start that did not" in said


def test_a_look_at_what_an_older_run_saw_downloads_nothing(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main(["pretrain", "--recipe", tiny, "--epochs", "0.1", "--out", str(run)]) == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["dataset"] = "cifar10"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.delenv("SMALLVIT_OFFLINE")
    monkeypatch.setattr(fetch, "fetch_dataset", lambda *_, **__: pytest.fail("it downloads"))
    assert find_record(Run(as_older(run))) is None


def test_a_broken_record_is_said_with_what_helps(tiny, pictures, tmp_path, capsys):
    assert train("finetune", tiny, pictures, tmp_path / "first") == 0
    (tmp_path / "first" / "learned.npz").write_bytes(b"PK")
    init = ["--init", tmp_path / "first"]
    assert train("finetune", tiny, pictures, tmp_path / "second", *init) == 3
    assert "learned.npz is missing or broken" in (line := last_line(capsys))
    assert "remove it to have the run's data asked" in line
    (tmp_path / "first" / "learned.npz").unlink()
    assert train("finetune", tiny, pictures, tmp_path / "second", *init) == 0
