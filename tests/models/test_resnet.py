import pytest
import timm
import torch

from smallvit.models.registry import ModelConfig, create_backbone


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def count_parameters(depth: int, width: int, num_classes: int) -> int:
    """Convolutions of 9 weights a pair of channels, two values of batch norm a channel."""
    total = 9 * 3 * width + 2 * width
    before = width
    for stage in range(3):
        after = width * 2**stage
        for _ in range((depth - 2) // 6):
            total += 9 * before * after + 9 * after * after + 4 * after
            total += before * after + 2 * after if before != after else 0
            before = after
    return total + before * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "depth", "width"), [("resnet20_small", 20, 16), ("resnet8_small", 8, 4)]
)
def test_parameter_count(name, depth, width):
    model = timm.create_model(name, width=width, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(depth, width, 10)


def test_resnet20_has_the_published_size():
    """0.27 M in He et al., 2016, table 6; 1x1 shortcuts add 2,752."""
    model = timm.create_model("resnet20_small")
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 2_752


def test_mean_of_the_dense_logits_is_the_image_logit():
    backbone = create_backbone(
        ModelConfig(name="resnet8_small", width=4), num_classes=5, image_size=16
    ).eval()
    dense = backbone.classify(backbone(images()).patch)
    assert dense.shape == (2, 16, 5)
    torch.testing.assert_close(dense.mean(dim=1), backbone.model(images()))


def test_classify_of_pooled_is_the_model():
    backbone = create_backbone(
        ModelConfig(name="resnet8_small", width=4), num_classes=5, image_size=16
    ).eval()
    tokens = backbone(images())
    assert tokens.cls is None
    torch.testing.assert_close(backbone.classify(tokens.pooled), backbone.model(images()))


@pytest.mark.parametrize(("stride", "side"), [(1, 16), (2, 8), (4, 4), (None, 4)])
def test_stride_is_the_size_of_a_cell(stride, side):
    config = ModelConfig(name="resnet8_small", width=4, stride=stride)
    backbone = create_backbone(config, num_classes=5, image_size=16)
    assert backbone.grid(16) == (side, side)


def test_cells_are_row_major():
    """A change in the top right corner reaches the last cell of the first row."""
    config = ModelConfig(name="resnet8_small", width=4)
    backbone = create_backbone(config, num_classes=5, image_size=16).eval()
    changed = images()
    changed[:, :, 0, 15] += 10
    moved = (backbone(images()).patch - backbone(changed).patch).abs().sum(dim=(0, 2))
    assert moved.unflatten(0, (4, 4))[0, 3] > 0
    assert moved.unflatten(0, (4, 4))[3, 0] == 0
