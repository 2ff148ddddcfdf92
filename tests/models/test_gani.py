import json

import pytest
import timm
import torch
import torch.nn.functional as F

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.core.model_config import ModelConfig
from smallvit.models.gani import PRESETS, gani_architecture
from smallvit.models.registry import create_backbone
from smallvit.models.swin import SwinBackbone

TINY = {
    "gani_vit": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "gani_cait": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "gani_swin": {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)},
}


def on_meta(name: str, **settings):
    with torch.device("meta"):
        return timm.create_model(name, **settings)


# The paper's networks, counted from the authors' code; 10 classes also at 224 px.
@pytest.mark.parametrize(
    ("name", "img_size", "num_classes", "millions"),
    [
        ("gani_vit", 32, 10, 2.698),
        ("gani_vit", 64, 200, 2.762),
        ("gani_cait", 32, 10, 8.053),
        ("gani_cait", 64, 200, 8.118),
        ("gani_swin", 32, 10, 7.049),
        ("gani_swin", 64, 200, 7.125),
        ("gani_swin", 224, 10, 7.052),
    ],
)
def test_parameters_are_those_of_the_paper(name, img_size, num_classes, millions):
    model = on_meta(name, img_size=img_size, num_classes=num_classes)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 3) == millions


def test_vit_parameters_add_up():
    patches, classes = 4 * 4 * 3 * 192 + 192, 192 * 10 + 10
    positions = 192 + 65 * 192
    norms, attention = 2 * 2 * 192, 192 * 3 * 192 + 3 * 192 + 192 * 192 + 192
    mlp = 192 * 384 + 384 + 384 * 192 + 192
    expected = patches + positions + 9 * (norms + attention + mlp) + 2 * 192 + classes
    assert sum(p.numel() for p in on_meta("gani_vit").parameters()) == expected


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("gani_vit", {32: 4, 64: 8, 224: 16, 48: 6}),
        ("gani_cait", {32: 4, 64: 8, 224: 16, (32, 64): 4}),
        ("gani_swin", {32: 2, 64: 4, 224: 4, 96: 4}),
    ],
)
def test_size_sets_the_patch_unless_one_is_given(name, patches):
    for img_size, patch_size in patches.items():
        assert gani_architecture(name, img_size=img_size)[1]["patch_size"] == patch_size
    assert gani_architecture(name, img_size=64, patch_size=2)[1]["patch_size"] == 2


@pytest.mark.parametrize("name", PRESETS)
def test_an_export_is_timms_own_architecture(name):
    """What timm builds from the exported name and arguments, by way of JSON, has the same keys."""
    architecture, arguments = gani_architecture(name, img_size=32)
    with torch.device("meta"):
        exported = timm.create_model(architecture, **json.loads(json.dumps(arguments)))
    ours = on_meta(name, num_classes=1000)
    assert type(exported).__module__.startswith("timm.")
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (exported, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_can_be_set(name):
    model = timm.create_model(name, num_classes=3, in_chans=3, **TINY[name]).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert model.embed_dim == TINY[name]["embed_dim"]


def test_blocks_drop_as_in_the_paper():
    """Linearly more with depth in ViT and Swin, evenly in CaiT, not at all in class attention."""
    vit = [getattr(block.drop_path1, "drop_prob", 0.0) for block in on_meta("gani_vit").blocks]
    swin = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in on_meta("gani_swin").layers
        for block in stage.blocks
    ]
    cait = on_meta("gani_cait")
    assert vit == pytest.approx([0.1 * i / 8 for i in range(9)])
    assert swin == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert {block.drop_path.drop_prob for block in cait.blocks} == {0.1}
    assert not hasattr(cait.blocks_token_only[0].drop_path, "drop_prob")


def test_cait_scales_its_layers_and_widens_class_attention():
    model = timm.create_model("gani_cait", embed_dim=16, depth=1, num_heads=2)
    torch.testing.assert_close(model.blocks[0].gamma_1.detach(), torch.full((16,), 1e-5))
    assert model.blocks[0].mlp.fc1.out_features == 2 * 16
    assert [block.mlp.fc1.out_features for block in model.blocks_token_only] == [64, 64]


def test_norms_add_the_papers_epsilon_but_for_swin():
    assert on_meta("gani_vit").blocks[0].norm1.eps == 1e-6
    assert on_meta("gani_cait").blocks[0].norm1.eps == 1e-6
    assert on_meta("gani_swin").layers[0].blocks[0].norm1.eps == 1e-5


def test_swin_runs_at_224_px_from_3136_patches():
    backbone = SwinBackbone(on_meta("gani_swin", img_size=224))
    patches = backbone.embed(torch.empty(1, 3, 224, 224, device="meta"))
    assert patches.shape == (1, 56, 56, 96)
    assert backbone.encode(patches).grid == (14, 14)


def test_unknown_presets_are_refused():
    with pytest.raises(UnknownNameError, match="unknown preset 'gani_vit2'; did you mean"):
        gani_architecture("gani_vit2", img_size=32)


def test_patches_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"patch_size \(5\) must divide images of 32 x 32 px"):
        gani_architecture("gani_vit", img_size=32, patch_size=5)


# hananshafi/vits-for-small-scale-datasets@43a7493, models/vit.py and models/cait.py, __init__ and
# _init_weights: trunc_normal_(std=.02) of positions, class token and every linear layer.
@pytest.mark.parametrize("name", ["gani_vit", "gani_cait"])
@pytest.mark.parametrize("registered", [True, False])
def test_weights_start_as_in_the_papers_code(name, registered):
    torch.manual_seed(0)
    model = (
        timm.create_model(name, img_size=32, num_classes=10)
        if registered
        else create_backbone(ModelConfig(name=name), num_classes=10, image_size=32).model
    )
    small = [model.cls_token, model.pos_embed, model.blocks[0].attn.qkv.weight]
    if name == "gani_cait":  # a linear layer there
        small.append(model.patch_embed.proj.weight)
        assert not model.patch_embed.proj.bias.any()
    for parameter in small:
        tolerance = 0.003 if parameter.numel() < 1000 else 0.0005
        assert parameter.std().item() == pytest.approx(0.02, abs=tolerance)


@pytest.mark.parametrize("side", [16, 24, 48])
def test_positions_of_small_views_are_interpolated_as_in_the_papers_code(side):
    """models/vit.py, interpolate_pos_encoding: bicubic, by (side // 4 + 0.1) / 8, no antialias."""
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name="gani_vit"), num_classes=10, image_size=32).eval()
    images = torch.randn(2, 3, side, side)
    table = backbone.model.pos_embed.detach()
    patches = backbone.embed(images)
    grid = table[:, 1:].reshape(1, 8, 8, 192).permute(0, 3, 1, 2)
    factor = (side // 4 + 0.1) / 8
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    positions = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, 192)], dim=1)
    x = torch.cat([backbone.model.cls_token.expand(2, -1, -1), patches.flatten(1, 2)], dim=1)
    x = backbone.model.norm(backbone.model.blocks(x + positions))
    tokens = backbone(images)
    torch.testing.assert_close(tokens.pooled, x[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.patch, x[:, 1:], rtol=1e-5, atol=1e-5)
    backbone.published_positions = False
    assert (backbone(images).pooled - tokens.pooled).abs().max() > 1e-3


def test_positions_of_its_own_grid_and_of_other_vits_are_timms():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    backbone = create_backbone(ModelConfig(name="gani_vit"), num_classes=10, image_size=32).eval()
    torch.testing.assert_close(backbone.logits(backbone(images)), backbone.model(images))
    plain = create_backbone(ModelConfig(depth=1), num_classes=10, image_size=32).eval()
    small = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain.logits(plain(small)), plain.model(small))
