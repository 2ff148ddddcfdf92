import contextlib

import pytest
import torch

from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone
from smallvit.teachers.score_maps import ScoreMaps
from smallvit.teachers.teacher import TOLERANCE, Teacher, spot_check

PLACES = torch.tensor([0, 2, 5])


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    config = ModelConfig(name="resnet8_small", width=4)
    backbone = create_backbone(config, num_classes=8, image_size=8)
    with torch.no_grad():
        backbone.model.fc.weight.mul_(20)  # sharp answers
    return Teacher(backbone)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def check(teacher: Teacher, images: torch.Tensor, maps: ScoreMaps) -> float:
    chosen = images[PLACES].split(1)
    return spot_check(teacher, chosen, maps, PLACES, autocast=contextlib.nullcontext)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_maps_of_the_same_images_differ_by_rounding(teacher, images, top_k):
    maps = ScoreMaps.from_dense([teacher(images)], top_k)
    assert check(teacher, images, maps) < TOLERANCE["fp32"] / 2


def test_maps_in_another_order_differ(teacher, images):
    maps = ScoreMaps.from_dense([teacher(images.flip(0))], 3)
    assert check(teacher, images, maps) > 10 * TOLERANCE["fp32"]


def test_listed_classes_that_are_not_the_likeliest_differ(teacher, images):
    """Each probability is right, but the likeliest class is not listed."""
    dense = teacher(images)
    prob, index = dense.topk(3, dim=1)
    maps = ScoreMaps(
        prob=prob[:, 1:].half(),
        index=index[:, 1:].int(),
        rest=(1 - prob[:, 1:].sum(dim=1)).half(),
        num_classes=8,
    )
    assert check(teacher, images, maps) > 10 * TOLERANCE["fp32"]


def test_maps_on_another_grid_differ_without_end(teacher, images):
    maps = ScoreMaps.from_dense([torch.full((6, 8, 3, 3), 1 / 8)], 3)
    assert check(teacher, images, maps) == float("inf")
