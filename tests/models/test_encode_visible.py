"""Leaving patches out: every architecture either does it exactly or says why it cannot."""

import pytest
import torch

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone, create_exported, model_arguments, own_models

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
ACCEPTED = {
    "vit_tiny": TINY,
    "gani_vit": TINY,
    "gani_cait": TINY,
    "lee_vit": TINY,
    "deit3_small_patch16_224": TINY,
    "vit_small_patch16_224": TINY | {"patch_size": 2},
}
REFUSED = {
    "lvvit_tiny": (TINY, "stem mixes"),
    "t2t_vit_7": (TINY, "stem mixes"),
    "t2t_vit_dense": ({}, "stem mixes"),
    "vit_tiny_convstem": (TINY, "stem mixes"),
    "vit_tiny_dwconv": (TINY, "stem mixes"),
    "cct_7_3x1": (TINY, "stem mixes"),
    "sl_vit": (TINY, "stem mixes"),
    "sl_cait": (TINY, "stem mixes"),
    "sl_cait_unmasked": (TINY, "stem mixes"),
    "gani_swin": ({"embed_dim": 24}, "windows"),
    "sl_swin": ({"embed_dim": 24}, "windows"),
    "resnet8_small": ({"width": 4}, "whole grid"),
    "resnet18_small": ({"width": 4}, "whole grid"),
    "wrn_16_8": ({}, "whole grid"),
    "convnext_atto_small": ({}, "whole images only"),
}
accepted = pytest.mark.parametrize("name", ACCEPTED)
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def build(name: str, settings: dict):
    torch.manual_seed(0)
    config = ModelConfig(name=name, **settings)
    side = 32 if "swin" in name else 16
    backbone = create_backbone(config, num_classes=0, image_size=side)
    for parameter in backbone.parameters():  # no layer scale of 1e-5: all layers count
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    return backbone.eval()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pick(num_patches: int) -> torch.Tensor:
    """Return other patches of each of two images, not in order."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(num_patches, generator=generator)[:5] for _ in range(2)])


def all_of(num_patches: int) -> torch.Tensor:
    return torch.arange(num_patches).expand(2, -1)


@accepted
def test_all_patches_in_order_are_the_whole_pass(name):
    backbone = build(name, ACCEPTED[name])
    patches = backbone.embed(draw(2, 3, 16, 16))
    whole = backbone.encode(patches)
    given = backbone.encode_visible(patches, all_of(whole.patch.shape[1]))
    torch.testing.assert_close(given.patch, whole.patch)
    torch.testing.assert_close(given.pooled, whole.pooled)
    assert given.grid == whole.grid


@accepted
def test_hidden_pixels_change_nothing(name):
    backbone = build(name, ACCEPTED[name])
    height, width = backbone.patch_size
    images = draw(2, 3, 16, 16)
    grid = backbone.embed_grid(16)
    visible = pick(grid[0] * grid[1])
    seen = torch.zeros(2, grid[0] * grid[1], dtype=torch.bool).scatter_(1, visible, True)
    seen = seen.unflatten(1, grid).repeat_interleave(height, 1).repeat_interleave(width, 2)
    others = torch.where(seen[:, None], images, draw(2, 3, 16, 16, seed=3))
    one, two = (backbone.encode_visible(backbone.embed(x), visible) for x in (images, others))
    assert torch.equal(one.patch, two.patch)
    assert torch.equal(one.pooled, two.pooled)
    assert not torch.allclose(backbone(images).pooled, backbone(others).pooled)


@accepted
def test_tokens_follow_the_order_of_the_given_places(name):
    backbone = build(name, ACCEPTED[name])
    patches = backbone.embed(draw(2, 3, 16, 16))
    visible = pick(patches[0, ..., 0].numel())
    tokens, turned = (backbone.encode_visible(patches, v) for v in (visible, visible.flip(1)))
    torch.testing.assert_close(tokens.patch, turned.patch.flip(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.pooled, turned.pooled, rtol=1e-4, atol=1e-5)


@accepted
def test_positions_are_those_of_the_whole_grid(name):
    """The same pixels at other places give other tokens."""
    backbone = build(name, ACCEPTED[name])
    patches = draw(1, 1, 1, backbone.embed(draw(1, 3, 16, 16)).shape[-1])
    patches = patches.expand(2, 4, 4, -1)
    places = torch.tensor([[0, 1], [10, 15]])
    first, second = backbone.encode_visible(patches, places).patch
    assert not torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def test_a_grid_of_another_size_gets_resampled_positions():
    backbone = build("gani_vit", ACCEPTED["gani_vit"])
    patches = backbone.embed(draw(2, 3, 24, 24))
    num_patches = patches.shape[1] * patches.shape[2]
    given = backbone.encode_visible(patches, all_of(num_patches))
    torch.testing.assert_close(given.patch, backbone.encode(patches).patch)


@accepted
def test_checkpointing_leaves_gradients_as_they_are(name):
    found = []
    for enable in (False, True):
        backbone = build(name, ACCEPTED[name]).train()
        backbone.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        patches = backbone.embed(draw(2, 3, 16, 16))
        tokens = backbone.encode_visible(patches, pick(patches[0, ..., 0].numel()))
        (tokens.patch.square().sum() + tokens.pooled.square().sum()).backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_says_why(name):
    settings, reason = REFUSED[name]
    backbone = build(name, settings)
    patches = backbone.embed(draw(2, 3, 32, 32))
    with pytest.raises(ConfigError, match=f"{backbone.model_name} cannot .*{reason}"):
        backbone.encode_visible(patches, all_of(4))


@pytest.mark.parametrize("name", own_models())
def test_every_own_model_is_accepted_or_says_why(name):
    config = ModelConfig(name=name)
    with torch.device("meta"):
        backbone = create_exported(*model_arguments(config, num_classes=0, image_size=64))
    takes = {"vit_tiny", "vit_small", "gani_vit", "gani_cait", "lee_vit"}
    assert (backbone.drop_refusal is None) == (name in takes)


def test_a_hybrid_of_convolutions_is_refused():
    backbone = create_exported(
        "vit_tiny_r_s16_p8_224", {"img_size": 64, "dynamic_img_size": True, "num_classes": 0}
    )
    assert backbone.drop_refusal == "its stem mixes neighbouring patches"


def test_a_model_is_called_as_it_was_asked_for_or_by_timms_name_or_by_its_class():
    backbone = build("gani_vit", TINY)
    assert backbone.model_name == "gani_vit"
    backbone.name = None
    assert backbone.model_name == "vit_tiny_patch16_224"
    backbone.model.pretrained_cfg = None
    assert backbone.model_name == "VisionTransformer"
