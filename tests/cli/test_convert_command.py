"""``smallvit convert``: public weights in, an export out that timm and --init read."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from smallvit.cli.app import main

DIM, PATCH, GRID, CLASSES = 24, 4, 3, 5


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A small ViT of Gani et al. under the authors' names."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + GRID**2, DIM),
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
        "head.weight": (CLASSES, DIM),
        "head.bias": (CLASSES,),
    }
    rows = {"attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM)}
    rows |= {"mlp.fc1": (2 * DIM, DIM), "mlp.fc2": (DIM, 2 * DIM)}
    for name, shape in rows.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
        shapes |= {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(weights, tmp_path) -> Path:
    path = tmp_path / "best.pth"
    torch.save({"model_state_dict": weights, "epoch": 3}, path)
    return path


def test_an_export_holds_the_weights_and_loads_with_timm(checkpoint, weights, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["convert", str(checkpoint), "--out", str(out)]) == 0
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, GRID * PATCH, GRID * PATCH]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name])
    said = capsys.readouterr().err
    assert f"mapped: {len(weights)} weights" in said
    assert "left out epoch" in said
    assert "12 attention heads" in said
    assert "12 attention heads" in (out / "README.md").read_text()


def test_safetensors_and_a_named_layout_and_model_give_the_same(weights, checkpoint, tmp_path):
    save_file(weights, tmp_path / "best.safetensors")
    named = ["--layout", "gani", "--model", "vit_small_patch16_224"]
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "a")]) == 0
    file = str(tmp_path / "best.safetensors")
    assert main(["convert", file, "--out", str(tmp_path / "b"), *named]) == 0
    first, second = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ab")
    assert first["model_args"] == second["model_args"]
    assert second["architecture"] == "vit_small_patch16_224"


def test_weights_that_do_not_fit_are_listed_and_end_with_exit_2(weights, tmp_path, capsys):
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(7)
    del weights["norm.weight"]
    torch.save(weights, tmp_path / "odd.pth")
    out = tmp_path / "export"
    assert main(["convert", str(tmp_path / "odd.pth"), "--out", str(out)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "blocks.0.mlp.fc1.bias is (7,), needed (48,)" in line
    assert "norm.weight (24,) is not in the weights" in line
    assert not out.exists()


class Code:
    def __reduce__(self):
        return os.getpid, ()


def test_code_missing_files_and_unknown_layouts_end_with_one_line(checkpoint, tmp_path, capsys):
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "code.pth")
    text = tmp_path / "text.pth"
    text.write_text("hello")  # torch's unpickler raises a KeyError
    out = ["--out", str(tmp_path / "export")]
    cases = [
        (["convert", str(tmp_path / "code.pth"), *out], 3, "getpid"),
        (["convert", str(tmp_path / "none.pth"), *out], 3, "No such file"),
        (["convert", str(tmp_path), *out], 3, "name a file of weights"),
        (["convert", str(text), *out], 3, "cut short, or no .pth"),
        (["convert", str(checkpoint), "--out", str(text / "export")], 3, "cannot create"),
        (["convert", str(checkpoint), *out, "--layout", "tl"], 2, "known: gani, lvvit, spt, t2t"),
        (["convert", str(checkpoint), *out, "--model", "vit_tny"], 2, "did you mean 'vit_tiny'"),
        (
            ["convert", str(checkpoint), *out, "--model", "resnet18"],
            2,
            "gani are for: leave --model",
        ),
        (["convert", str(checkpoint), *out, "--layout", "t2t"], 2, "leave --layout out"),
    ]
    for arguments, code, message in cases:
        assert main(arguments) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert len(lines) == 1
    assert not (tmp_path / "export").exists()


@pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")
def test_the_next_step_of_a_network_for_large_images_takes_large_images(weights, tmp_path, capsys):
    """Its patches would leave too few tokens of the 32 px that the recipe takes."""
    weights["pos_embed"] = torch.randn(1, 1 + 36, DIM)
    weights["patch_embed.proj.weight"] = torch.randn(DIM, 3, 16, 16)
    torch.save(weights, tmp_path / "large.pth")
    assert main(["convert", str(tmp_path / "large.pth"), "--out", str(tmp_path / "export")]) == 0
    step = capsys.readouterr().err.strip().splitlines()[-1]
    assert step.endswith(f"--init {tmp_path / 'export'} --data.image-size 96")
    words = step.removeprefix("next: smallvit ").replace("NAME", "digits").split()
    size = ["--optim.batch-size", "2", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, *size]) == 0


def test_an_existing_folder_is_replaced_only_if_it_is_an_export(checkpoint, tmp_path, capsys):
    out = tmp_path / "export"
    words = ["convert", str(checkpoint), "--out", str(out)]
    assert main(words) == 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    stranger = tmp_path / "letters"
    stranger.mkdir()
    (stranger / "mother.txt").write_text("dear")
    assert main([*words[:-1], str(stranger), "--overwrite"]) == 2
    assert [path.name for path in stranger.iterdir()] == ["mother.txt"]


def test_the_export_of_a_run_is_left_alone(checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["convert", str(checkpoint), "--out", str(run / "export")]) == 0
    (run / "result.json").write_text("{}")
    words = ["convert", str(checkpoint), "--out", str(run / "export"), "--overwrite"]
    assert main(words) == 2
    assert "exists and is not empty: name another --out" in capsys.readouterr().err
