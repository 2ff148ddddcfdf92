"""Options: none is empty, none is given by two names with two values, paths are absolute."""

import os
from pathlib import Path

import pytest
import yaml

from smallvit.cli.app import main
from smallvit.runs.config import Recipe
from smallvit.runs.recipe import load_recipe


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "--data", ""],
        ["pretrain", "--dataset", "digits", "--out", ""],
        ["pretrain", "--dataset", "digits", "--init", " "],
        ["pretrain", "--recipe", ""],
        ["pretrain", "--dataset", "digits", "--method="],
        ["finetune", "--dataset", "digits", "--optim.name", ""],
        ["segment", "--data", ""],
        ["run", ""],
        ["eval", ""],
        ["bench", ""],
        ["runs", "show", ""],
        ["data", "info", ""],
        ["recipes", "check", ""],
        ["quickstart", "--out", ""],
    ],
    ids=" ".join,
)
def test_empty_text_is_refused(words, capsys):
    assert main(words) == 2
    assert "is empty: give it a value, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "one", "other", "place"),
    [
        ("pretrain", "--epochs 2", "--schedule.epochs 5", "pretrain.schedule.epochs"),
        ("finetune", "--batch-size 2", "--optim.batch-size 4", "finetune.optim.batch_size"),
        ("pretrain", "--dataset digits", "--data.dataset svhn", "data.dataset"),
        ("pretrain", "--data a", "--data.path b", "data.path"),
        ("pretrain", "--model vit_tiny", "--model.name vit_small", "model.name"),
        ("teacher", "--model resnet8_small", "--model.name resnet20_small", "teacher.model.name"),
        ("segment", "--head linear", "--head.name upernet-light", "segment.head.name"),
    ],
)
def test_two_names_of_one_setting_must_agree(stage, one, other, place, capsys):
    assert main([stage, *one.split(), *other.split()]) == 2
    assert f"{one} and {other} are one setting, {place}" in capsys.readouterr().err


def test_two_names_of_one_setting_may_say_the_same(capsys):
    words = ["pretrain", "--epochs", "2", "--schedule.epochs", "2", "--data", "no-such-folder"]
    assert main(words) == 3
    assert "one setting" not in capsys.readouterr().err


def test_a_recipe_is_named_once_in_either_way(tiny, capsys):
    assert main(["run", tiny, "--recipe", "generic/32px"]) == 2
    assert "are two recipes: give one" in capsys.readouterr().err
    for words in (["run", tiny, "--recipe", tiny], ["run", "--recipe", tiny]):
        assert main([*words, "--data", "no-such-folder"]) == 3


def test_data_named_by_its_long_option_is_not_passed_over_for_the_newest_run(capsys):
    assert main(["finetune", "--token-label", "--data.path", "no-such-folder"]) == 3
    assert "no-such-folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--pretrain.init", "start"], ("pretrain", "init")),
        (["--teacher.adopt", "start"], ("teacher", "adopt")),
        (["--finetune.score-maps", "start"], ("finetune", "score_maps")),
    ],
)
def test_relative_paths_of_run_mean_the_same_from_any_folder(words, keys, tmp_path, monkeypatch):
    seen = {}

    def note(recipe, **_):
        seen["recipe"] = recipe
        raise KeyboardInterrupt

    monkeypatch.setattr("smallvit.runs.chain.run_recipe", note)
    assert main(["run", "digits/vit_tiny", *words]) == 130
    section, key = keys
    assert str(getattr(getattr(seen["recipe"], section), key)) == str(tmp_path / "start")


def test_an_empty_path_in_a_recipe_is_not_its_folder(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"data": {"path": ""}}))
    assert main(["pretrain", "--recipe", str(path)]) == 2
    assert "data.path is empty: name a path, or leave it out" in capsys.readouterr().err


def test_a_command_leaves_the_environment_as_it_was(monkeypatch, capsys):
    monkeypatch.delenv("SMALLVIT_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert main(["pretrain", "--dataset", "cifar100", "--offline"]) == 3
    assert "SMALLVIT_OFFLINE" not in os.environ
    assert "HF_HUB_OFFLINE" not in os.environ


def test_each_command_line_has_options_of_its_own(monkeypatch):
    seen = []

    def note(request):
        seen.append(request)
        return Recipe()

    monkeypatch.setattr("smallvit.runs.request.resolve", note)
    monkeypatch.setattr("smallvit.runs.stage.run_stage", lambda *_: None)
    assert main(["pretrain", "--epochs", "3"]) == 0
    assert main(["pretrain", "--seed", "1"]) == 0
    assert [request.options for request in seen] == [{"epochs": 3.0}, {"seed": 1}]
    assert seen[1].argv == ["pretrain", "--seed", "1"]


def test_paths_of_a_file_start_at_its_folder_and_those_given_at_the_working_directory(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({"data": {"dataset": "digits"}, "teacher": {"adopt": "a"}}))
    assert load_recipe(str(file), {})[0].teacher.adopt == str(folder / "a")
    assert Path(load_recipe(str(file), {})[0].teacher.adopt or "").is_absolute()
