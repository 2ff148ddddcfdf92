from typing import Any

import pytest
import torch

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone, settings_of
from smallvit.teachers.teacher import Teacher

SIDE = 32
# Every family; those that take sizes are built 1 block deep.
FAMILIES = (
    "gani_vit",
    "gani_cait",
    "gani_swin",
    "lvvit_tiny",
    "t2t_vit_7",
    "cct_7_3x1",
    "resnet20_small",
    "resnet18_small",
    "wrn_16_8",
    "convnext_atto_small",
    "sl_vit",
)
POOLED_BY_MEAN = (
    "gani_swin",
    "resnet20_small",
    "resnet18_small",
    "wrn_16_8",
    "convnext_atto_small",
)


def images(side: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def resnet() -> Teacher:
    config = ModelConfig(name="resnet8_small", width=4)
    return Teacher(create_backbone(config, num_classes=5, image_size=16))


def test_probabilities_sum_to_one_at_every_place(resnet):
    dense = resnet(images())
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(2, 4, 4))
    assert bool((dense >= 0).all())


def test_places_are_the_classifier_at_each_cell(resnet):
    backbone = resnet.backbone
    features = backbone.model.forward_features(images())
    expected = torch.einsum("bdhw,cd->bchw", features, backbone.model.fc.weight)
    expected = (expected + backbone.model.fc.bias[:, None, None]).softmax(dim=1)
    torch.testing.assert_close(resnet(images()), expected)


def test_a_vit_annotates_its_patches(small_vit):
    backbone = small_vit().eval()
    tokens = backbone.model.forward_features(images())[:, 1:]
    expected = backbone.model.head(tokens).softmax(dim=-1)
    dense = Teacher(backbone)(images())
    torch.testing.assert_close(dense.flatten(2).mT, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_annotates_its_token_grid_and_a_mean_of_tokens_is_the_image(name):
    takes = settings_of(name)
    sizes: dict[str, Any] = {"width": 4} if "width" in takes else {}
    if "num_heads" in takes:
        sizes = {"embed_dim": 24, "num_heads": 2, "depth": 1}
    torch.manual_seed(0)
    config = ModelConfig(name=name, **sizes)
    backbone = create_backbone(config, num_classes=5, image_size=SIDE).eval()
    teacher = Teacher(backbone)
    with torch.no_grad():
        dense, tokens, logits = teacher(images(SIDE)), backbone(images(SIDE)), backbone.model
        assert dense.shape == (2, 5, *backbone.grid(SIDE))
        torch.testing.assert_close(dense.sum(dim=1), torch.ones(2, *tokens.grid))
        if name in POOLED_BY_MEAN:
            per_place = backbone.classify_tokens(tokens.patch)
            torch.testing.assert_close(
                per_place.mean(dim=1), logits(images(SIDE)), atol=1e-5, rtol=1e-4
            )
            maps = per_place.softmax(dim=-1).mT.unflatten(2, tokens.grid)
            torch.testing.assert_close(dense, maps)


def test_a_token_head_that_was_never_trained_leaves_the_map_to_the_classifier():
    """LV-ViT's starts at zero, which would call every class equally likely everywhere."""
    config = ModelConfig(name="lvvit_tiny", embed_dim=24, depth=1, num_heads=2)
    backbone = create_backbone(config, num_classes=5, image_size=SIDE).eval()
    with torch.no_grad():
        backbone.model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        patch = backbone(images(SIDE)).patch
        expected = backbone.model.head(patch).softmax(dim=-1)
        torch.testing.assert_close(Teacher(backbone)(images(SIDE)).flatten(2).mT, expected)
        backbone.model.token_head.bias[3] = 50
    assert (Teacher(backbone)(images(SIDE)).argmax(dim=1) == 3).all()


def test_a_temperature_of_two_takes_the_root_of_each_probability(resnet):
    """Closed form: softmax(z / 2) is sqrt(softmax(z)), scaled to sum to 1."""
    root = resnet(images()).sqrt()
    warm = Teacher(resnet.backbone, temperature=2.0)(images())
    torch.testing.assert_close(warm, root / root.sum(dim=1, keepdim=True))


def test_a_flip_averages_with_the_mirrored_image_mirrored_back(resnet):
    both = Teacher(resnet.backbone, flip=True)
    mirrored = resnet(images().flip(3)).flip(3)
    assert not torch.allclose(resnet(images()), mirrored, atol=1e-3)
    torch.testing.assert_close(both(images()), (resnet(images()) + mirrored) / 2)
    torch.testing.assert_close(both(images().flip(3)), both(images()).flip(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_above_zero(resnet, temperature):
    with pytest.raises(ConfigError, match=f"must be above 0, got {temperature}"):
        Teacher(resnet.backbone, temperature=temperature)


def test_a_wide_image_gives_a_wide_map(resnet):
    wide = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    assert resnet(wide).shape == (1, 5, 2, 4)


def test_grids_start_at_two_by_two(resnet, small_vit):
    """The published code needs a map of at least six columns."""
    assert resnet(images(8)).shape == (2, 5, 2, 2)
    assert Teacher(small_vit(image_size=16))(images(8)).shape == (2, 5, 2, 2)


def test_it_is_frozen_and_in_evaluation_mode(small_vit):
    teacher = Teacher(small_vit(drop_path_rate=0.5).train())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.backbone.training
    first, second = teacher(images()), teacher(images())
    assert torch.equal(first, second)
    assert not first.requires_grad
