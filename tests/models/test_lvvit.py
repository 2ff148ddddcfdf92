import pytest
import timm
import torch

from smallvit.core.errors import ConfigError
from smallvit.models.lvvit import VARIANTS
from smallvit.models.transformer import SmallTransformer, TransformerBackbone


def tiny(**settings: object) -> SmallTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("lvvit_small", **{**sizes, **settings})


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Millions: README.md of zihangJiang/TokenLabeling@9dbfd59.
@pytest.mark.parametrize(
    ("name", "dim", "depth", "width", "millions"),
    [
        ("lvvit_tiny", 240, 12, 64, 8.53),
        ("lvvit_small", 384, 16, 64, 26.15),
        ("lvvit_medium", 512, 20, 64, 55.83),
        ("lvvit_large", 768, 24, 128, 150.02),
    ],
)
def test_parameters_are_those_of_the_paper(name, dim, depth, width, millions):
    convs = 3 * 7 * 7 * width + 2 * 3 * 3 * width**2 + 8 * 8 * width * dim + dim
    stem = convs + 3 * 2 * width
    attention = 3 * dim**2 + dim**2 + dim
    mlp = 2 * 3 * dim**2 + 3 * dim + dim
    blocks = depth * (attention + mlp + 2 * 2 * dim)
    tokens = dim + (1 + 14 * 14) * dim
    heads = 2 * 1000 * (dim + 1)
    with torch.device("meta"):
        model = timm.create_model(name)
    assert count(model) == stem + tokens + blocks + 2 * dim + heads
    assert round(count(model) / 1e6, 2) == millions


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("img_size", "patch_size", "grid"), [(32, 4, 8), (64, 8, 8), (224, 16, 14)]
)
def test_small_images_have_64_tokens(name, img_size, patch_size, grid):
    with torch.device("meta"):
        model = timm.create_model(name, img_size=img_size, num_classes=10)
        assert model.patch_size == patch_size
        assert model.patch_embed(torch.empty(1, 3, img_size, img_size)).shape[1:3] == (grid, grid)
    assert model.pos_embed.shape[1] == 1 + grid**2


def test_names_are_those_of_timm_vits():
    names = {key for key in tiny(depth=1).state_dict() if "patch_embed" not in key}
    linear = ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
    assert names == {
        *("cls_token", "pos_embed", "norm.weight", "norm.bias", "blocks.0.attn.qkv.weight"),
        *(f"blocks.0.{layer}.{kind}" for layer in linear for kind in ("weight", "bias")),
        *(f"{head}.{kind}" for head in ("head", "token_head") for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize(
    ("name", "residual_scale", "drop_path"),
    [
        ("lvvit_tiny", 1.0, 0.1),
        ("lvvit_small", 2.0, 0.1),
        ("lvvit_medium", 2.0, 0.2),
        ("lvvit_large", 3.0, 0.3),
    ],
)
def test_blocks_have_their_residual_scale_and_stochastic_depth(name, residual_scale, drop_path):
    model = timm.create_model(name, img_size=16, embed_dim=16, depth=3, num_heads=2)
    assert {block.residual_scale for block in model.blocks} == {residual_scale}
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, drop_path / 2, drop_path])


def test_all_norms_have_the_authors_eps():
    norms = [m for m in tiny().modules() if isinstance(m, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-5] * 5


def test_logits_add_half_of_the_best_token():
    # zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:208-211: x_cls + 0.5 * x_aux.max(1)[0]
    model, images = tiny().eval(), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_(model.token_head.weight)
    tokens = model.forward_features(images)
    best = model.token_head(tokens[:, 1:]).amax(dim=1)
    torch.testing.assert_close(model(images), model.head(tokens[:, 0]) + best / 2)


def test_token_head_can_be_left_out():
    model = tiny(token_head=False).eval()
    images = torch.randn(2, 3, 16, 16)
    assert count(tiny()) - count(model) == 5 * (16 + 1)
    assert TransformerBackbone(model).token_head is None
    torch.testing.assert_close(model(images), model.head(model.forward_features(images)[:, 0]))


def test_without_classes_the_pooled_token_is_what_is_left():
    model, images = tiny(num_classes=0).eval(), torch.randn(2, 3, 16, 16)
    backbone = TransformerBackbone(model)
    tokens = backbone(images)
    torch.testing.assert_close(backbone.logits(tokens), model(images))
    torch.testing.assert_close(backbone.logits(tokens), tokens.cls)


def test_a_new_token_head_is_silent_like_the_first():
    model = tiny()
    assert not model.token_head.weight.any()
    torch.nn.init.normal_(model.token_head.weight)
    model.reset_classifier(7)
    assert model.token_head.weight.shape == (7, 16)
    assert not model.token_head.weight.any()
    assert model.head.weight.any()


def test_a_patch_may_be_any_even_divisor():
    assert tiny(img_size=(24, 36), patch_size=6).grid_size == (4, 6)
    with pytest.raises(ConfigError, match=r"patch_size \(3\) .* 24 x 36 px .*; 2, 4, 6, 12 would"):
        tiny(img_size=(24, 36), patch_size=3)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"num_heads \(3\) .* embed_dim \(16\); 1, 2, 4 would"):
        tiny(num_heads=3)
