import json

import pytest
import timm
import torch

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.models.gani import PRESETS, gani_architecture
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
    with pytest.raises(ConfigError, match="patches of 5 px do not divide images of 32 x 32 px"):
        gani_architecture("gani_vit", img_size=32, patch_size=5)
