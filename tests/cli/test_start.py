"""Where a stage starts: ``--init`` with a run, an export, and the weights that timm has."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import _registry

from smallvit.cli.app import main
from smallvit.runs.adopt import adopt_settings
from smallvit.runs.init_weights import init_settings, is_weights_file

DIGITS = ["--dataset", "digits", "--data.image-size", "16", "--data.label-fraction", "0.2"]
TIMM = "test_vit.r160_in1k"  # 64 wide, 6 blocks, patches of 16 px
SHORT = ["--epochs", "0.05", "--batch-size", "16", "--method.views.num-local", "0"]


@pytest.fixture
def timm_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Give timm the file of a network's weights, which it would download."""
    torch.manual_seed(0)
    weights = timm.create_model(TIMM.partition(".")[0]).state_dict()
    save_file(weights, tmp_path / "timm.safetensors")
    config = _registry._model_pretrained_cfgs[TIMM]
    local = dataclasses.replace(config, file=str(tmp_path / "timm.safetensors"))
    monkeypatch.setitem(_registry._model_pretrained_cfgs, TIMM, local)
    return weights


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of bright and of dark noise, 30 each."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 128, (8, 8, 3), dtype=np.uint8) + 120 * label
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def read(run: Path, name: str = "result.json") -> dict:
    return yaml.safe_load((run / name).read_text())


def pretrain(tiny: str, out: Path, *more: str) -> Path:
    assert main(["pretrain", "--recipe", tiny, "--epochs", "0.1", "--out", str(out), *more]) == 0
    return out


def test_a_folder_is_no_file_of_weights_whatever_its_name(tmp_path):
    (tmp_path / "run.pt").mkdir()
    assert not is_weights_file(str(tmp_path / "run.pt"))
    assert is_weights_file(str(tmp_path / "absent.pt"))


def test_stage_1_goes_on_from_a_run_with_its_model_and_data(tiny, tmp_path, capsys):
    first, second = pretrain(tiny, tmp_path / "first"), tmp_path / "second"
    assert main(["pretrain", "--init", str(first), *SHORT, "--out", str(second)]) == 0
    recipe = read(second, "recipe.yaml")
    assert recipe["data"] == read(first, "recipe.yaml")["data"]
    assert recipe["model"] == read(first, "recipe.yaml")["model"]
    assert recipe["pretrain"]["init"] == str(first)
    assert read(second)["init"] == "pretrain"
    said = " ".join(capsys.readouterr().err.split())
    assert "heads of the method, optimizer and schedule start anew" in said


def test_the_network_goes_on_where_the_run_ended(tiny, tmp_path):
    first, second = pretrain(tiny, tmp_path / "first"), tmp_path / "second"
    tiny_step = ["--optim.lr", "1e-12", "--schedule.min-lr", "1e-12"]
    pretrain(tiny, second, "--init", str(first), *tiny_step)
    ours, theirs = (load_file(run / "export" / "model.safetensors") for run in (second, first))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_what_a_chain_of_runs_cost_adds_up(tiny, tmp_path):
    init, spent = [], 0
    for name in ("first", "second", "third"):
        run = pretrain(tiny, tmp_path / name, *init)
        assert read(run)["upstream"].get("pretrain", {}).get("samples_seen", 0) == spent
        spent += read(run)["samples_seen"]
        init = ["--init", str(run)]
    tune = ["finetune", "--recipe", tiny, *init, "--epochs", "0.1", "--out", str(tmp_path / "t")]
    assert main(tune) == 0
    assert read(tmp_path / "t")["upstream"]["pretrain"]["samples_seen"] == spent


def test_stage_1_goes_on_from_an_export_on_a_folder_of_images(tiny, tmp_path, pictures):
    export, run = tmp_path / "export", tmp_path / "run"
    shutil.copytree(pretrain(tiny, tmp_path / "first") / "export", export)
    words = ["pretrain", "--init", str(export), "--data", str(pictures), *SHORT]
    assert main([*words, "--out", str(run)]) == 0
    assert read(run, "recipe.yaml")["model"]["embed_dim"] == 16
    assert (read(run)["init"], read(run)["dataset"]) == ("weights", "pictures")
    assert read(run)["extra_data"] == "unknown (weights of export)"


def test_other_data_brings_the_runs_model_alone_and_its_data_are_recorded(tiny, tmp_path, pictures):
    first, run = pretrain(tiny, tmp_path / "first"), tmp_path / "run"
    words = ["pretrain", "--init", str(first), "--data", str(pictures), *SHORT]
    assert main([*words, "--out", str(run)]) == 0
    data = read(run, "recipe.yaml")["data"]
    assert (data["dataset"], data["path"]) == (None, str(pictures))
    assert read(run)["extra_data"] == "digits"


def test_images_without_labels_then_more_of_them_then_labels(tiny, tmp_path, pictures):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i, path in enumerate(sorted(pictures.rglob("*.png"))):
        Image.open(path).rotate(180).save(bare / f"{i}.png")
    first = pretrain(tiny, tmp_path / "first", "--data", str(bare))
    second = tmp_path / "second"
    assert main(["pretrain", "--init", str(first), *SHORT, "--out", str(second)]) == 0
    assert read(second, "recipe.yaml")["data"]["path"] == str(bare)
    tune = ["finetune", "--recipe", tiny, "--init", str(second), "--data", str(pictures)]
    tune += ["--data.label-fraction", "1", "--epochs", "20"]
    assert main([*tune, "--out", str(tmp_path / "third")]) == 0
    result = read(tmp_path / "third")
    assert (result["init"], result["extra_data"]) == ("pretrain", "bare")
    assert result["metrics"]["val/top1"] > 0.9


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_timms_weights_bring_their_model_and_are_fitted_to_small_images(
    stage, tmp_path, timm_weights, capsys
):
    run = tmp_path / "run"
    words = [stage, *DIGITS, "--init", f"timm:{TIMM}", "--epochs", "0.05"]
    words += ["--batch-size", "16", "--optim.lr", "1e-12", "--schedule.min-lr", "1e-12"]
    assert main([*words, "--out", str(run)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "patch_embed.proj.weight resampled from 16 x 16 to" in said
    assert "head.weight not loaded" in said
    recipe, result = read(run, "recipe.yaml"), read(run)
    assert recipe["model"]["name"] == "test_vit"
    assert recipe[stage]["init"] == f"timm:{TIMM}"
    assert result["init"] == "weights"
    assert result["extra_data"] == f"timm weights {TIMM} (trained on what their tag says)"
    trained = load_file(run / "export" / "model.safetensors")
    name = "blocks.3.mlp.fc1.weight"
    torch.testing.assert_close(trained[name], timm_weights[name], atol=1e-6, rtol=0)


def test_timms_weights_are_known_by_their_tag_and_stay_on_record(tiny, tmp_path, timm_weights):
    first, run = tmp_path / "first", tmp_path / "run"
    words = ["pretrain", *DIGITS, "--init", "timm:test_vit", *SHORT]
    assert main([*words, "--out", str(first)]) == 0
    tune = ["finetune", "--init", str(first), "--epochs", "0.05", "--batch-size", "16"]
    assert main([*tune, "--out", str(run)]) == 0
    assert read(run)["extra_data"] == f"timm weights {TIMM} (trained on what their tag says)"
    assert main(["pretrain", "--recipe", str(first / "recipe.yaml"), "--dry-run"]) == 0


def test_timms_weights_of_another_network_than_named_are_refused(timm_weights, capsys):
    words = ["pretrain", *DIGITS, "--init", f"timm:{TIMM}", "--model", "vit_tiny"]
    assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"timm:{TIMM} is for another network" in line
    assert "leave --model and its settings out" in line


MISTAKES = {
    "no run": ("runs/none", 2, "runs/none is not there: 'smallvit runs ls' shows"),
    "no model": ("timm:vit_tny", 2, "unknown timm weights 'vit_tny'; did you mean 'vit_tiny'"),
    "no tag": (
        "timm:test_vit.in1k",
        2,
        "unknown timm weights 'test_vit.in1k'; did you mean 'test_vit.r160_in1k'",
    ),
    "no weights": ("timm:resnet8_small", 2, "timm has no weights of resnet8_small"),
}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("case", MISTAKES)
def test_a_start_that_is_not_there_ends_with_one_line(case, stage, capsys, tmp_path):
    init, code, message = MISTAKES[case]
    assert main([stage, *DIGITS, "--init", init]) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("smallvit: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("offline", ["1", "0"])
def test_timms_weights_out_of_reach_end_with_how_to_put_them_there(offline, monkeypatch, capsys):
    monkeypatch.setenv("SMALLVIT_OFFLINE", offline)
    monkeypatch.setattr("smallvit.inference.export.try_to_load_from_cache", lambda *_: None)

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    words = ["pretrain", *DIGITS, "--init", f"timm:{TIMM}", "--dry-run"]
    assert main(words) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    reason = {"1": "offline", "0": "ConnectionError: no route"}[offline]
    assert f"timm weights {TIMM} could not be fetched ({reason})" in line
    assert f"config.json and model.safetensors of timm/{TIMM}" in line


def test_weights_that_were_downloaded_before_are_used_offline(timm_weights, monkeypatch, tmp_path):
    file = str(tmp_path / "timm.safetensors")
    config = dataclasses.replace(_registry._model_pretrained_cfgs[TIMM], file=None)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, TIMM, config)
    cache = {(f"timm/{TIMM}", "model.safetensors"): file}
    monkeypatch.setattr(
        "smallvit.inference.export.try_to_load_from_cache", lambda *asked: cache[asked]
    )
    words = ["finetune", *DIGITS, "--init", f"timm:{TIMM}", "--batch-size", "16"]
    assert main([*words, "--offline", "--dry-run"]) == 0


def test_a_downloaded_folder_of_timms_is_an_export(tmp_path, timm_weights):
    """What the message of weights out of reach advises."""
    folder, run = tmp_path / "folder", tmp_path / "run"
    folder.mkdir()
    config = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(timm_weights, folder / "model.safetensors")
    words = ["pretrain", *DIGITS, "--init", str(folder), *SHORT]
    assert main([*words, "--out", str(run)]) == 0
    assert read(run, "recipe.yaml")["model"]["name"] == "test_vit"


def test_python_starts_from_runs_and_from_timms_weights(tiny, tmp_path, timm_weights):
    import smallvit as sv

    short = {"epochs": 0.05, "batch_size": 16, "method": {"views": {"num_local": 0}}}
    first = sv.pretrain(
        data={"dataset": "digits", "image_size": 16},
        init=f"timm:{TIMM}",
        out=tmp_path / "a",
        **short,
    )
    assert first.recipe["model"]["name"] == "test_vit"
    second = sv.pretrain(init=first, out=tmp_path / "b", **short)
    assert second.recipe["data"]["dataset"] == "digits"
    assert second.result["init"] == "pretrain"
    tuned = sv.finetune(init=second, epochs=0.05, batch_size=16, out=tmp_path / "c")
    assert tuned.recipe["model"]["name"] == "test_vit"
    samples = first.result["samples_seen"] + second.result["samples_seen"]
    assert tuned.result["upstream"]["pretrain"]["samples_seen"] == samples


def test_a_start_brings_the_scale_of_its_grey_values_or_says_another(tiny, tmp_path, capsys):
    for name, top in (("dark", 4095), ("bright", 60000)):
        for i in range(24):
            values = np.random.default_rng([top, i]).integers(0, top + 1, (16, 16), dtype=np.uint16)
            values[0, 0] = top
            path = tmp_path / name / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    start = tmp_path / "start"
    small = ["--recipe", tiny, "--data.image-size", "16", "--batch-size", "8"]
    pretrain = ["pretrain", "--data", str(tmp_path / "dark"), "--epochs", "0.5", *small]
    assert main([*pretrain, "--out", str(start)]) == 0
    assert json.loads((start / "env.json").read_text())["dataset"]["grey_range"] == [0, 4095]
    assert json.loads((start / "export/config.json").read_text())["pixels"]["grey_range"] == [
        0,
        4095,
    ]
    other = {"data": {"path": str(tmp_path / "bright")}}
    assert init_settings(str(start), other)["data"]["grey_range"] == [0, 4095]
    assert adopt_settings(str(start), other)["data"]["grey_range"] == [0, 4095]
    finetune = ["finetune", "--data", str(tmp_path / "bright"), "--init", str(start), "--dry-run"]
    capsys.readouterr()
    assert main([*finetune, *small]) == 0
    said = capsys.readouterr().err
    assert "start saw grey values on the scale 0 to 4095, bright has 0 to 65535" in said
    adopt = ["teacher", "--data", str(tmp_path / "bright"), "--from", str(start), "--dry-run"]
    size = ["--data.image-size", "16", "--data.grey-range", "0", "65535"]
    assert main([*adopt, *size]) == 0
    assert "start saw grey values on the scale 0 to 4095, bright has" in capsys.readouterr().err
    assert main([*finetune, *small, "--data.grey-range", "0", "4095"]) == 0  # the remedy
    assert "saw grey values on the scale" not in capsys.readouterr().err
