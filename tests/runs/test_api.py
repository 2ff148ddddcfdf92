"""The Python functions: forgiving arguments, one-line errors, progress, and the same weights."""

import json
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import smallvit as sv
from smallvit.core.console import console, logger
from smallvit.core.errors import ConfigError, SmallViTError
from smallvit.core.run_folder import Run

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2}
SHORT = {"model": TINY, "epochs": 0.02, "batch_size": 32, "device": "cpu"}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "api-cache"))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def weights(run: Run | None) -> dict[str, torch.Tensor]:
    assert run is not None
    return load_file(run.path / "export" / "model.safetensors")


def test_data_comes_first_and_progress_is_shown(capfd):
    run = sv.finetune("digits", out="run", **SHORT)
    said = capfd.readouterr().err
    assert "recipe: digits/vit_tiny" in said
    assert "finetune of digits" in said
    assert f"run: {run.path}" in said
    assert logger.handlers == []


def test_it_is_silent_where_that_is_asked_for(capfd):
    sv.pretrain("digits", verbose=False, **SHORT)
    assert capfd.readouterr() == ("", "")


def test_a_notebook_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_jupyter", True)
    sv.pretrain("digits", **SHORT)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    assert said.out.count("\r") > 2


def test_the_programs_own_handlers_are_left_in_charge(capfd):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        sv.finetune("digits", **SHORT)
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr().err == ""
    assert logger.propagate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 2}, "finetune() has no argument 'epoch'; did you mean epochs=...?"),
        ({"lr": 1e-3}, 'did you mean optim={"lr": ...}?'),
        ({"gpu": True}, 'did you mean device="cuda"?'),
        ({"num_workers": 4}, "no loader has workers"),
        ({"zzzz": 4}, "docs/python.md lists"),
        ({"device": "gpu"}, "cannot be 'gpu'; did you mean 'cuda'?"),
        ({"optim": {"learning_rate": 1}}, "did you mean 'lr'?"),
        ({"data": [1, 2]}, "data must be the name of a data set, a path or a mapping"),
        ({"data": np.zeros(3)}, "got a numpy.ndarray: for images and labels"),
        ({"data": "cifar"}, "unknown dataset 'cifar'; did you mean 'cifar10'?"),
        ({"data": ""}, "data is empty"),
        ({"out": ""}, "out is empty"),
        ({"init": 3}, "init must be a run or a path, got 3"),
        ({"init": ""}, "init is empty"),
        ({"recipe": {}}, "recipe must be the name or the file of one"),
        ({"teacher": "x"}, "teacher=... and score_maps=... need token_label=True"),
        ({"resume": "none"}, 'resume="'),
    ],
)
def test_a_mistake_is_one_line_in_terms_of_arguments(arguments, message, without_shape_checks):
    with pytest.raises(SmallViTError) as caught:
        sv.finetune(**{"data": "digits", "verbose": False, **arguments})
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_use_is_replaced_or_named_with_what_does_so():
    sv.finetune("digits", out="run", verbose=False, **SHORT)
    with pytest.raises(
        ConfigError, match=r"holds a run: replace it with overwrite=True, or choose another out="
    ):
        sv.finetune("digits", out="run", verbose=False, **SHORT)
    again = sv.finetune("digits", out="run", overwrite=True, verbose=False, **SHORT)
    assert again.completed


def test_a_dry_run_writes_nothing(tmp_path):
    assert sv.pretrain("digits", dry_run=True, verbose=False, **SHORT) is None
    assert not (tmp_path / "runs").exists()


def test_a_run_that_was_stopped_goes_on():
    run = sv.finetune("digits", out="run", verbose=False, **SHORT)
    result = run.result | {"status": "interrupted"}
    (run.path / "result.json").write_text(json.dumps(result))
    again = sv.finetune(resume=run, verbose=False)
    assert again.path == run.path.absolute()
    assert again.completed


def test_numbers_of_numpy_are_numbers(without_shape_checks):
    settings = {**SHORT, "epochs": np.float64(0.02), "batch_size": np.int64(32)}
    run = sv.finetune("digits", seed=np.int64(3), verbose=False, **settings)
    assert run.recipe["seed"] == 3


def test_a_path_to_adopt_is_absolute_in_the_recipe(tmp_path):
    with pytest.raises(SmallViTError, match=str(tmp_path / "no-run")):
        sv.teacher("digits", adopt="no-run", verbose=False)


def test_weights_are_the_same_from_any_thread_mode_and_state():
    expected = weights(sv.pretrain("digits", verbose=False, **SHORT))
    found = []
    work = lambda: found.append(weights(sv.pretrain("digits", verbose=False, **SHORT)))  # noqa: E731
    torch.rand(7)
    np.random.default_rng().random()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        work()
    assert len(found) == 3
    for other in found:
        assert all(torch.equal(expected[name], other[name]) for name in expected)


def test_a_notebooks_figures_are_left_alone():
    before = sys.modules.get("matplotlib.pyplot")
    sv.finetune("digits", verbose=False, **SHORT)
    assert sys.modules.get("matplotlib.pyplot") is before


def test_two_arguments_for_one_setting_must_agree():
    message = r"epochs=2 and schedule={\"epochs\": 5} are one setting, finetune.schedule.epochs"
    with pytest.raises(ConfigError, match=message):
        sv.finetune("digits", epochs=2, schedule={"epochs": 5}, verbose=False)


def test_a_run_to_adopt_brings_its_data():
    run = sv.finetune("digits", out="run", verbose=False, **SHORT)
    with pytest.raises(SmallViTError, match="no more than chance"):
        sv.teacher(adopt=run, verbose=False)


def test_a_recipe_is_run_by_its_stages_as_on_the_command_line(tmp_path):
    stages = {
        "pretrain": {"schedule": {"epochs": 0.02}, "optim": {"batch_size": 32}},
        "finetune": {"schedule": {"epochs": 0.5}, "optim": {"batch_size": 32}},
    }
    words = {"model": TINY, "out": "all", "device": "cpu", "verbose": False}
    arms = {"arms": ["scratch", "ssl"]}
    assert sv.run("digits/vit_tiny", dry_run=True, **stages, **words, **arms) is None
    assert not (tmp_path / "all").exists()
    result = sv.run("digits/vit_tiny", **stages, **words, **arms)
    assert len(result.leaderboard.rows) == 2
    assert (tmp_path / "all" / "leaderboard" / "leaderboard.json").is_file()


def test_an_argument_that_a_recipe_has_not_names_what_is_meant():
    with pytest.raises(ConfigError, match=r"run.. has no argument 'epochs'; did you mean"):
        sv.run("digits/vit_tiny", epochs=3, verbose=False)
    with pytest.raises(ConfigError, match=r"unknown key 'attack'"):
        sv.bench([], attack=["fgsm"], verbose=False)
