import pytest
import torch

from smallvit.models.registry import ModelConfig, create_backbone
from smallvit.teachers.teacher import Teacher


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
