"""Exports: every network comes back with its logits, and other folders are named as such."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smallvit.core.errors import ConfigError, DataError
from smallvit.core.model_config import ModelConfig
from smallvit.inference.export import (
    exported_model,
    initialize_from,
    read_export,
    weights_hash,
    write_export,
)
from smallvit.models.registry import create_backbone, model_arguments, own_models, settings_of
from smallvit.models.tokens import AbstractBackbone

CLASSES = ("cat", "dog", "newt")
# Without their sizes, which settings do not change.
LARGE = ("gani_swin", "sl_swin", "resnet18_small", "t2t_vit_dense", "wrn_16_8", "wrn_28_10")


def small(name: str, **given: object) -> ModelConfig:
    sizes = (
        {"embed_dim": 24, "depth": 1, "num_heads": 2} if "num_heads" in settings_of(name) else {}
    )
    return ModelConfig(name=name, **{**sizes, **given})


def export(
    config: ModelConfig, folder: Path, num_classes: int = 3, token_head: nn.Linear | None = None
) -> AbstractBackbone:
    arguments = model_arguments(config, num_classes=num_classes, image_size=32)[1]
    backbone = create_backbone(config, num_classes=num_classes, image_size=32)
    write_export(
        folder,
        backbone,
        arguments=arguments,
        class_names=CLASSES[:num_classes],
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        card="",
        token_head=token_head,
    )
    return backbone.eval()


@pytest.mark.parametrize("name", [name for name in own_models() if name not in LARGE[3:]])
def test_every_network_comes_back_with_its_logits(name, tmp_path):
    backbone = export(small(name), tmp_path)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    again = read_export(tmp_path).eval()
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = backbone.logits(backbone(images))
        torch.testing.assert_close(again.logits(again(images)), expected)
        torch.testing.assert_close(plain(images), expected)


@pytest.mark.parametrize("name", ["gani_vit", "gani_cait", "gani_swin", "convnext_atto_small"])
def test_networks_that_are_timms_need_timm_alone(name, tmp_path):
    export(small(name), tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    assert timm.create_model(architecture).__module__.startswith("timm.")


def test_an_export_tells_its_settings(tmp_path):
    export(small("gani_vit", patch_size=2), tmp_path)
    settings = exported_model(tmp_path)
    assert settings == {
        "name": "vit_tiny_patch16_224",
        "patch_size": 2,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "drop_path_rate": 0.1,
    }
    backbone = create_backbone(ModelConfig(**settings), num_classes=3, image_size=32)
    assert initialize_from(backbone, tmp_path, CLASSES) == []


def test_another_architecture_is_named_with_a_remedy(tmp_path):
    export(small("gani_vit"), tmp_path)
    other = create_backbone(small("gani_cait"), num_classes=3, image_size=32)
    with pytest.raises(
        ConfigError,
        match=r"holds a vit_tiny_patch16_224 with patches of 4 px: .*leave --model and its",
    ):
        initialize_from(other, tmp_path, CLASSES)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"architecture": "vit_tiny_patch16_224"}'])
def test_a_folder_that_is_no_export_is_an_error_of_the_data(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="is no whole export"):
        read_export(tmp_path)
    with pytest.raises(DataError, match="is no whole export"):
        exported_model(tmp_path)


def test_weights_of_another_network_are_no_whole_export(tmp_path):
    export(small("gani_vit"), tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="is no whole export"):
        read_export(tmp_path)


@pytest.mark.parametrize("name", ["gani_vit", "gani_swin", "resnet8_small"])
def test_a_token_head_comes_back_with_its_dense_logits_and_timm_takes_the_plain_model(
    name, tmp_path
):
    width = create_backbone(small(name), num_classes=3, image_size=32).embed_dim
    head = nn.Linear(width, 3)
    backbone = export(small(name), tmp_path, token_head=head)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    again = read_export(tmp_path).eval()
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        tokens = backbone(images)
        torch.testing.assert_close(again.classify_tokens(again(images).patch), head(tokens.patch))
        torch.testing.assert_close(plain(images), backbone.logits(tokens))
    assert not any("aux" in name for name in load_file(tmp_path / "model.safetensors"))
    assert initialize_from(backbone, tmp_path, CLASSES) == []


def test_an_export_without_a_token_head_removes_that_of_an_earlier_one(tmp_path):
    export(small("gani_vit"), tmp_path, token_head=nn.Linear(24, 3))
    export(small("gani_vit"), tmp_path)
    assert read_export(tmp_path).aux_head is None


def test_the_networks_own_token_head_has_no_second_one(tmp_path):
    with pytest.raises(AssertionError, match="has a token head itself"):
        export(small("lvvit_tiny"), tmp_path, token_head=nn.Linear(24, 3))
    export(small("lvvit_tiny"), tmp_path)
    save_file(nn.Linear(24, 3).state_dict(), tmp_path / "token_head.safetensors")
    with pytest.raises(DataError, match=r"lvvit_tiny has a token head of its own: .*remove the"):
        read_export(tmp_path)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (nn.Linear(24, 4), r"weight \[4, 24\], bias \[4\]"),
        (nn.Linear(16, 3), r"weight \[3, 16\], bias \[3\]"),
        (nn.Linear(24, 3, bias=False), r"weight \[3, 24\]"),
    ],
)
def test_a_token_head_of_another_network_is_named_with_both_shapes(head, found, tmp_path):
    export(small("gani_vit"), tmp_path, token_head=head)
    with pytest.raises(
        DataError,
        match=rf"token_head.safetensors does not fit .*: {found}, here weight \[3, 24\], bias "
        r"\[3\]: repeat its run, or remove the file",
    ) as caught:
        read_export(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_token_head_cut_short_is_named_with_what_to_do(tmp_path):
    export(small("gani_vit"), tmp_path, token_head=nn.Linear(24, 3))
    path = tmp_path / "token_head.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"token_head.safetensors is broken .*remove the file"):
        read_export(tmp_path)


def test_the_hash_covers_a_token_head_and_is_the_old_one_without():
    model, head = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
    weights = model.weight.detach().numpy().tobytes()
    alone = hashlib.sha256(b"weight" + weights).hexdigest()
    assert weights_hash(model) == weights_hash(model, None) == alone
    first = weights_hash(model, head)
    nn.init.ones_(head.bias)
    assert len({alone, first, weights_hash(model, head)}) == 3
