"""``--method`` through the command line: every method, and mistakes about them."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from smallvit.cli.app import main
from smallvit.cli.method_options import MethodOptions
from smallvit.pretraining.config import METHODS

# Sizes of the heads, so that a step of an 8 px image takes no time.
SMALL = {
    "dino": {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
    "ibot": {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    "mocov3": {"hidden_dim": 16, "output_dim": 8},
    "simclr": {"hidden_dim": 16, "output_dim": 8},
    "lejepa": {"hidden_dim": 16, "output_dim": 8},
}


def options(name: str) -> list[str]:
    return [
        word
        for key, value in SMALL.get(name, {}).items()
        for word in (f"--method.{key.replace('_', '-')}", str(value))
    ]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_exports_by_its_name(tiny, tmp_path, name):
    run = tmp_path / "run"
    words = ["pretrain", "--recipe", tiny, "--method", name, *options(name)]
    assert main([*words, "--epochs", "0.1", "--out", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["method"] == name
    method = yaml.safe_load((run / "recipe.yaml").read_text())["pretrain"]["method"]
    assert method["name"] == name
    assert SMALL.get(name, {}).items() <= method.items()
    tune = ["finetune", "--recipe", tiny, "--init", str(run), "--dry-run"]
    assert main(tune) == 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_where_only_the_data_is_named(name):
    words = ["pretrain", "--dataset", "digits", "--method", name, *options(name)]
    model = ["--model.patch-size", "2", "--model.embed-dim", "16", "--model.depth", "1"]
    model += ["--model.num-heads", "2", "--model.drop-path-rate", "0", "--data.image-size", "16"]
    assert main([*words, *model, "--batch-size", "4", "--dry-run"]) == 0


def test_an_unknown_method_ends_with_the_nearest_name(tiny, capsys):
    assert main(["pretrain", "--recipe", tiny, "--method", "mocov2"]) == 2
    line = last_line(capsys.readouterr().err)
    assert line.startswith("smallvit: unknown method 'mocov2'; did you mean 'mocov3'? known: dino")


def test_an_option_of_another_method_is_refused_with_the_names_of_both(tiny, capsys):
    words = ["pretrain", "--recipe", tiny, "--method", "mae", "--method.num-prototypes", "8"]
    assert main(words) == 2
    line = last_line(capsys.readouterr().err)
    assert "--method.num-prototypes is an option of dino and ibot, not of mae" in line


def test_an_option_of_another_method_than_the_recipes_is_refused(tiny, capsys):
    words = ["pretrain", "--recipe", tiny, "--method.decoder-depth", "2"]
    assert main(words) == 2
    assert "pretrain.method.decoder_depth" in last_line(capsys.readouterr().err)


def test_naming_another_method_leaves_the_recipes_settings_out_and_says_so(tiny, capsys, tmp_path):
    run = tmp_path / "run"
    words = ["pretrain", "--recipe", tiny, "--method", "simmim", "--epochs", "0.05"]
    assert main([*words, "--out", str(run)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{Path(tiny).name} has settings of method dino: left out for simmim" in said
    method = yaml.safe_load((run / "recipe.yaml").read_text())["pretrain"]["method"]
    assert "num_prototypes" not in method


def test_naming_the_recipes_own_method_keeps_its_settings(tiny, capsys, tmp_path):
    run = tmp_path / "run"
    words = ["pretrain", "--recipe", tiny, "--method", "dino", "--epochs", "0.05"]
    assert main([*words, "--out", str(run)]) == 0
    assert "left out for" not in capsys.readouterr().err
    method = yaml.safe_load((run / "recipe.yaml").read_text())["pretrain"]["method"]
    assert method["num_prototypes"] == 16


def test_a_run_does_not_go_on_with_another_method(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--recipe", tiny, "--epochs", "0.05", "--out", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    assert main(["pretrain", "--resume", str(run), "--method", "simmim"]) == 2
    line = last_line(capsys.readouterr().err)
    assert "continues a run of method dino: leave --method simmim out" in line
    assert main(["pretrain", "--resume", str(run), "--method", "dino"]) == 0


def test_help_says_which_methods_take_an_option(capsys):
    main(["pretrain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--method.num-prototypes INT [dino, ibot]" in said
    assert "--method.decoder-depth INT [mae]" in said
    assert f"What is learned: {', '.join(METHODS)}." in said


def test_python_takes_a_method_by_name_or_with_its_settings(tiny, tmp_path):
    import smallvit as sv

    named = sv.pretrain(recipe=tiny, method="simmim", epochs=0.05, out=tmp_path / "a")
    assert named.result["method"] == "simmim"
    method = {"name": "dino", "num_prototypes": 8, "views": {"num_local": 0}}
    run = sv.pretrain(recipe=tiny, method=method, epochs=0.05, out=tmp_path / "b")
    assert run.recipe["pretrain"]["method"]["num_prototypes"] == 8


def test_every_option_of_a_method_is_explained():
    for field in dataclasses.fields(MethodOptions):
        for option in getattr(field.type, "__metadata__", ()):
            assert field.name == "views" or not option.help.endswith("] "), field.name


@pytest.mark.parametrize("name", ["simclr", "mocov3", "lejepa"])
def test_batches_that_hold_an_image_twice_are_refused_before_anything_is_written(
    name, tiny, tmp_path, capsys
):
    run = tmp_path / "run"
    words = ["pretrain", "--recipe", tiny, "--method", name, "--batch-size", "5000"]
    assert main([*words, "--out", str(run)]) == 2
    line = last_line(capsys.readouterr().err)
    assert f"{name} compares the images" in line
    assert "--batch-size 5000 must be between 2 and the 1,306 training images" in line
    assert not run.exists()


def test_batches_that_hold_an_image_twice_are_said_for_the_other_methods(tiny, capsys):
    words = ["pretrain", "--recipe", tiny, "--batch-size", "2612", "--dry-run"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "each batch of 2612 holds all 1306 images 2.0 times" in said
