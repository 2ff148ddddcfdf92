"""``smallvit teacher --from``: a trained network as the teacher of a data set."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import _registry

from smallvit.cli.app import main
from smallvit.data.files.config import DataConfig
from smallvit.inference.export import read_export
from smallvit.runs.data import load_dataset
from smallvit.teachers.score_maps import open_score_maps
from smallvit.teachers.teacher import Teacher

TIMM = "test_vit.r160_in1k"  # 64 wide, 6 blocks, patches of 16 px
# No batch norm: its running statistics would need more steps than these.
VIT = ["--model", "vit_tiny", "--model.embed-dim", "16", "--model.depth", "1"]
TRAIN = [*VIT, "--model.num-heads", "2", "--epochs", "2", "--batch-size", "8"]
SIZE = ["--data.image-size", "8"]


def draw_pictures(folder: Path, classes: tuple[str, ...] = ("dark", "bright"), seed: int = 0):
    """Class folders of noise that is brighter from class to class, 28 images each."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(28):  # so that both classes are in each split
            pixels = generator.integers(0, 60, (8, 8, 3)) + 190 * label // (len(classes) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures")


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


def read(run: Path, name: str = "result.json") -> dict[str, Any]:
    return yaml.safe_load((run / name).read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def train(pictures: Path, out: Path, *more: str) -> Path:
    words = ["teacher", "--data", str(pictures), *SIZE, *TRAIN, "--out", str(out), *more]
    assert main(words) == 0
    return out


def adopt(start: Path | str, out: Path, *more: str) -> int:
    """Adopt a network; the size is stated since a recipe without one has 32 px."""
    size = [] if "--data.image-size" in more or not {"--data"} & set(more) else SIZE
    return main(["teacher", "--from", str(start), "--out", str(out), *size, *more])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("smallvit: ")
    return line


def test_a_run_of_the_same_classes_is_taken_as_it_is_with_its_data(pictures, tmp_path, capsys):
    first, second = train(pictures, tmp_path / "first"), tmp_path / "second"
    assert adopt(first, second) == 0
    ours, theirs = weights(second), weights(first)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    result = read(second)
    assert (result["stage"], result["status"]) == ("teacher", "completed")
    assert result["metrics"]["val/top1"] == read(first)["metrics"]["val/top1"]
    assert (result["samples_seen"], result["steps"], result["extra_data"]) == (0, 0, "none")
    assert result["upstream"]["adopted"]["samples_seen"] == read(first)["samples_seen"]
    assert read(second, "recipe.yaml")["data"] == read(first, "recipe.yaml")["data"]
    assert "taken as it is" in " ".join(capsys.readouterr().err.split())


def test_label_and_eval_take_an_adopted_teacher_as_any_other(pictures, tmp_path):
    first, second = train(pictures, tmp_path / "first"), tmp_path / "second"
    shutil.copytree(first / "export", tmp_path / "export")
    assert adopt(tmp_path / "export", second, "--data", str(pictures)) == 0
    assert read(second)["extra_data"] == "unknown (weights of export)"
    assert main(["label", "--teacher", str(second), "--out", str(tmp_path / "label")]) == 0
    header = open_score_maps(
        tmp_path / "label" / "score_maps.safetensors",
        load_dataset(DataConfig(path=pictures, image_size=8)),
    )[1]
    assert header.extra_data == "unknown (weights of export)"
    assert main(["eval", str(second)]) == 0


def test_timms_network_gets_a_classifier_fitted_on_the_training_images(
    pictures, tmp_path, timm_weights, capsys
):
    run = tmp_path / "run"
    assert adopt(f"timm:{TIMM}", run, "--data", str(pictures)) == 0
    result, ours = read(run), weights(run)
    assert result["metrics"]["val/top1"] == 1.0
    assert result["samples_seen"] == result["num_labels"]
    assert result["extra_data"] == f"timm weights {TIMM} (trained on what their tag says)"
    assert read(run, "recipe.yaml")["teacher"]["model"]["name"] == "test_vit"
    moved = {name for name in ours if not torch.equal(ours[name], timm_weights[name])}
    resampled = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert moved == {"head.weight", "head.bias", *resampled}
    said = " ".join(capsys.readouterr().err.split())
    assert "patch_embed.proj.weight resampled from 16 x 16 to" in said
    assert "fitted on the mean patch tokens of" in said
    backbone = read_export(run / "export").eval()
    plain = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = backbone.classify_tokens(backbone(batch).patch)
        torch.testing.assert_close(dense.mean(dim=1), plain(batch))
    assert Teacher(backbone)(batch).shape == (2, 2, 4, 4)


def test_a_file_of_timms_weights_gives_the_same_as_their_name(pictures, tmp_path, timm_weights):
    data = ["--data", str(pictures), "--model.patch-size", "2"]
    torch.save({"state_dict": timm_weights}, tmp_path / "best.pt")
    assert adopt(tmp_path / "best.pt", tmp_path / "a", "--model", "test_vit", *data) == 0
    assert adopt(f"timm:{TIMM}", tmp_path / "b", *data) == 0
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name])
    assert read(tmp_path / "a")["extra_data"] == "unknown (weights of best.pt)"


def test_a_fitted_classifier_sees_neither_validation_nor_test_images(
    pictures, tmp_path, timm_weights
):
    """Other validation and test images, the same training images: the same weights."""
    data = ["--model.patch-size", "2", "--data"]
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        draw_pictures(tmp_path / "one" / split, seed=seed)
        draw_pictures(tmp_path / "two" / split, seed=seed and seed + 10)
    for name in ("one", "two"):
        assert adopt(f"timm:{TIMM}", tmp_path / f"from-{name}", *data, str(tmp_path / name)) == 0
    ours, theirs = weights(tmp_path / "from-one"), weights(tmp_path / "from-two")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pretrain_run_gets_a_classifier(pictures, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    sizes = ["--model.embed-dim", "16", "--model.depth", "1", "--model.num-heads", "2"]
    words = ["pretrain", "--data", str(pictures), *SIZE, *sizes, "--epochs", "0.1"]
    words += ["--batch-size", "8"]
    assert main([*words, "--method.views.num-local", "0", "--out", str(first)]) == 0
    assert adopt(first, second) == 0
    result = read(second)
    assert (result["init"], result["classifier"], result["extra_data"]) == (
        "pretrain",
        "fitted",
        "none",
    )
    assert result["upstream"]["pretrain"]["samples_seen"] == read(first)["samples_seen"]
    assert result["metrics"]["val/top1"] == 1.0


def test_another_image_size_resamples_positions(pictures, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(pictures, first)
    data = ["--data", str(pictures), "--data.image-size", "16"]
    assert adopt(first / "export", second, *data) == 0
    assert (weights(first)["pos_embed"].shape[1], weights(second)["pos_embed"].shape[1]) == (17, 65)
    torch.testing.assert_close(weights(first)["head.weight"], weights(second)["head.weight"])


def test_another_class_list_is_refused_with_both_lists(pictures, tmp_path, capsys):
    first = train(pictures, tmp_path / "first")
    other = draw_pictures(tmp_path / "other", ("cat", "dog", "newt"))
    assert adopt(first / "export", tmp_path / "second", "--data", str(other)) == 2
    line = refusal(capsys)
    assert "knows 2 classes (bright, dark), other has 3 (cat, dog, newt)" in line
    assert not (tmp_path / "second").exists()


def test_other_held_out_images_than_a_run_had_are_refused(pictures, tmp_path, capsys):
    first = train(pictures, tmp_path / "first")
    assert adopt(first, tmp_path / "second", "--data.split-seed", "3") == 2
    assert "use its data.split_seed and fractions, or pass --allow-leak" in refusal(capsys)
    assert not (tmp_path / "second").exists()


def test_a_teacher_that_saw_cifar_10_is_refused_for_cinic_10_unless_allowed(tmp_path, capsys):
    cifar10 = draw_pictures(tmp_path / "cifar10", seed=0)
    cinic10 = draw_pictures(tmp_path / "cinic10", seed=1)
    first, second = train(cifar10, tmp_path / "first"), tmp_path / "second"
    # An image of CIFAR-10 under CINIC-10's name, wherever the split puts it.
    for i in range(16):
        shutil.copy(cifar10 / "dark" / f"{i}.png", cinic10 / "dark" / f"copy-{i}.png")
    assert adopt(first, second, "--data", str(cinic10)) == 2
    line = refusal(capsys)
    assert f"--from {first} saw cifar10, and cifar10 and cinic10 share images" in line
    assert "--allow-leak" in line
    assert not second.exists()
    assert adopt(first, second, "--data", str(cinic10), "--allow-leak") == 0
    extra = read(second)["extra_data"]
    assert extra.startswith("cifar10")
    assert extra.endswith("(shares images: --allow-leak)")
    assert read(second, "env.json")["extra_data"] == extra


def test_a_network_no_better_than_chance_is_refused(pictures, tmp_path, capsys):
    export = train(pictures, tmp_path / "first") / "export"
    swapped = load_file(export / "model.safetensors")
    swapped |= {name: swapped[name].flip(0) for name in ("head.weight", "head.bias")}
    save_file(swapped, export / "model.safetensors")
    assert adopt(export, tmp_path / "second", "--data", str(pictures)) == 2
    assert "no more than chance (naming one class always: 50.00%)" in refusal(capsys)
    assert read(tmp_path / "second")["status"] == "failed"
    assert not (tmp_path / "second" / "export").exists()
    assert main(["label", "--teacher", str(tmp_path / "second")]) == 3


@pytest.mark.parametrize(
    "option",
    [
        ("--epochs", "3"),
        ("--batch-size", "8"),
        ("--optim.lr", "1e-3"),
        ("--schedule.warmup-epochs", "1"),
        ("--augment.policy", "none"),
        ("--method.label-smoothing", "0"),
        ("--resume", "runs/x"),
    ],
)
def test_options_of_training_are_refused(option, pictures, tmp_path, capsys):
    assert adopt("timm:test_vit", tmp_path / "run", "--data", str(pictures), *option) == 2
    assert f"trains none: leave {option[0]} out" in refusal(capsys)
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "no run": (["--from", "runs/none"], 2, "runs/none is not there"),
    "no file": (["--from", "none.pt", "--model", "test_vit"], 2, "none.pt is not there"),
    "cut short": (["--from", "short.safetensors", "--model", "test_vit"], 3, "it is cut short"),
    "part of a run": (
        ["--from", "made/checkpoints/best.pt"],
        2,
        "made/checkpoints/best.pt is a part of a run: name the run, ",
    ),
    "no model": (["--from", "whole.pt"], 2, "give their network with --model NAME"),
    "other model": (
        ["--from", "whole.pt", "--model", "resnet8_small"],
        2,
        "is for another network than resnet8_small",
    ),
    "model of timm's": (
        ["--from", "timm:test_vit", "--model", "vit_tiny"],
        2,
        "brings its own network: leave --model out",
    ),
    "size of timm's": (
        ["--from", "timm:test_vit", "--model.embed-dim", "32"],
        2,
        "leave --model.embed-dim out",
    ),
    "no timm model": (["--from", "timm:vit_tny"], 2, "did you mean 'vit_tiny'"),
    "nothing to allow": (["--allow-leak"], 2, "--allow-leak needs --from"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_with_one_line(case, pictures, tmp_path, timm_weights, capsys):
    torch.save(timm_weights, tmp_path / "whole.pt")
    content = (tmp_path / "timm.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.json").write_text("{}")
    words, code, message = MISTAKES[case]
    assert main(["teacher", *words, "--data", str(pictures)]) == code
    assert message in refusal(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_writes_nothing(pictures, tmp_path, timm_weights):
    assert adopt(f"timm:{TIMM}", tmp_path / "run", "--data", str(pictures), "--dry-run") == 0
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_replaced_only_when_asked_to(pictures, tmp_path, capsys):
    first, second = train(pictures, tmp_path / "first"), tmp_path / "second"
    assert adopt(first, second) == 0
    assert adopt(first, second) == 2
    assert "replace it with --overwrite" in refusal(capsys)
    assert adopt(first, second, "--overwrite") == 0


def test_an_adopted_teacher_can_be_adopted_again(pictures, tmp_path, timm_weights):
    """Its pooling is among its arguments, so it comes back as it was."""
    data = ["--data", str(pictures)]
    assert adopt(f"timm:{TIMM}", tmp_path / "a", *data) == 0
    assert adopt(tmp_path / "a", tmp_path / "b") == 0
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    args = json.loads((tmp_path / "b" / "export" / "config.json").read_text())["model_args"]
    assert args["global_pool"] == "avg"
    assert read(tmp_path / "b")["extra_data"] == read(tmp_path / "a")["extra_data"]
