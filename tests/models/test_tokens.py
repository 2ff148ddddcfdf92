"""What every architecture must do behind the token interface."""

import pytest
import timm
import torch

from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone, own_models

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# A stand-in of each architecture: settings, and the side of its images.
STAND_INS = {
    "vit_tiny": (TINY, 24),
    "gani_vit": (TINY, 24),
    "gani_cait": (TINY, 24),
    "gani_swin": ({"embed_dim": 24}, 32),
    "lvvit_small": (TINY, 24),
    "lvvit_large": (TINY, 24),
    "t2t_vit_7": (TINY, 24),
    "t2t_vit_t_7": (TINY, 24),
    "t2t_vit_14_se": (TINY, 24),
    "t2t_vit_16_ghost": (TINY, 24),
    "t2t_vit_dense": ({}, 16),
    "vit_tiny_convstem": (TINY, 24),
    "vit_tiny_dwconv": (TINY, 24),
    "cct_7_3x1": (TINY, 24),
    "lee_vit": (TINY, 24),
    "sl_vit": (TINY, 24),
    "sl_cait": (TINY, 24),
    "sl_cait_unmasked": (TINY, 24),
    "sl_swin": ({"embed_dim": 24}, 32),
    "resnet8_small": ({"width": 4}, 16),
    "resnet18_small": ({"width": 4}, 16),
    "wrn_16_8": ({}, 16),
    "convnext_atto_small": ({}, 16),
    "deit_tiny_patch16_224": (TINY, 24),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24, "window_size": 2, "patch_size": 1}, 32),
}
# Names that differ from one above in sizes alone.
SIZES = {
    "vit_small",
    "lvvit_tiny",
    "lvvit_medium",
    *(f"t2t_vit_{n}" for n in (10, 12, 14, 19, 24)),
    *(f"t2t_vit_t_{n}" for n in (10, 12, 14, 19, 24)),
    "t2t_vit_14_resnext",
    "t2t_vit_14_wide",
    "resnet14_small",
    "resnet20_small",
    "resnet56_small",
    "wrn_28_10",
}


def images(side: int, width: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, side, width or side, generator=generator)


def build(name: str):
    settings, side = STAND_INS[name]
    torch.manual_seed(0)
    config = ModelConfig(name=name, **settings)
    backbone = create_backbone(config, num_classes=5, image_size=side)
    return backbone, side


every_model = pytest.mark.parametrize("name", STAND_INS)
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def test_every_own_model_has_a_stand_in():
    timms = {"deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"}
    assert set(own_models()) == (set(STAND_INS) - timms) | SIZES


@every_model
def test_logits_of_the_tokens_are_those_of_the_model(name):
    backbone, side = build(name)
    backbone.eval()
    tokens = backbone(images(side))
    assert tokens.patch.shape == (2, tokens.grid[0] * tokens.grid[1], backbone.embed_dim)
    assert tokens.grid == backbone.grid(side)
    torch.testing.assert_close(
        backbone.logits(tokens), backbone.model(images(side)), rtol=1e-4, atol=1e-5
    )


@every_model
def test_dense_logits_are_one_row_a_token(name):
    backbone, side = build(name)
    tokens = backbone.eval()(images(side))
    assert backbone.classify_tokens(tokens.patch).shape == (2, tokens.patch.shape[1], 5)


@every_model
def test_other_and_non_square_sizes_give_grids_in_proportion(name):
    backbone, side = build(name)
    backbone.eval()
    h, w = backbone.grid(side)
    tokens = backbone(images(side, 2 * side))
    assert tokens.grid == (h, 2 * w)
    assert tokens.patch.shape[1] == 2 * h * w
    assert tokens.patch.isfinite().all()


@every_model
def test_gradients_reach_every_trained_parameter(name):
    backbone, side = build(name)
    tokens = backbone(images(side))
    loss = backbone.logits(tokens).square().sum() + tokens.patch.square().sum()
    loss.backward()
    missing = [
        key for key, p in backbone.model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert missing == []


@pytest.mark.slow
@every_model
def test_compiles_without_a_graph_break(name, without_shape_checks):
    backbone, side = build(name)
    backbone.eval()
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(images(side)).patch, backbone(images(side)).patch, rtol=1e-4, atol=1e-5
    )


@every_model
def test_bfloat16_is_close_to_float32(name):
    backbone, side = build(name)
    backbone.eval()
    exact = backbone(images(side)).patch
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(images(side)).patch.float()
    assert rough.isfinite().all()
    assert (rough - exact).norm() / exact.norm() < 0.05


@every_model
def test_checkpointing_leaves_gradients_as_they_are(name):
    found = []
    for enable in (False, True):
        backbone, side = build(name)
        backbone.set_grad_checkpointing(enable)
        backbone.train()
        torch.manual_seed(3)
        backbone.logits(backbone(images(side))).square().sum().backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


@every_model
def test_levels_are_maps_of_the_image(name):
    backbone, side = build(name)
    final, levels = backbone.model.eval().forward_intermediates(images(side))
    assert len(levels) >= 2
    assert all(level.shape[0] == 2 and level.ndim == 4 for level in levels)
    assert levels[-1].shape[2:] == backbone.grid(side)
    assert final.isfinite().all()


@pytest.mark.parametrize("name", own_models()[2:])
def test_timm_creates_every_own_model(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    assert model.num_classes == 7
    assert timm.is_model(name)


def test_an_auxiliary_head_reads_the_tokens_and_is_no_part_of_the_model():
    backbone, side = build("vit_tiny")
    backbone.eval()
    assert backbone.aux_head is None
    names, tokens = set(backbone.model.state_dict()), backbone(images(side))
    head = backbone.aux_head = torch.nn.Linear(16, 5)
    torch.testing.assert_close(backbone.classify_tokens(tokens.patch), head(tokens.patch))
    assert set(backbone.model.state_dict()) == names
    backbone.to(torch.float64)  # it moves with the backbone
    assert head.weight.dtype == torch.float64


def test_a_token_head_of_the_model_itself_goes_before_an_auxiliary_one():
    backbone, side = build("lvvit_small")
    tokens = backbone.eval()(images(side))
    backbone.aux_head = torch.nn.Linear(16, 5)
    torch.nn.init.normal_(backbone.model.token_head.weight)
    torch.testing.assert_close(
        backbone.classify_tokens(tokens.patch), backbone.model.token_head(tokens.patch)
    )
