import pytest
import timm
import torch
from torch.nn import functional

from smallvit.core.errors import ConfigError
from smallvit.models.resnet import ResNetBackbone, SmallResNet
from smallvit.models.wide_resnet import PreActivationBlock


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def small_wrn(**arguments) -> SmallResNet:
    torch.manual_seed(0)
    arguments = {"depth": 10, "width_factor": 1, "num_classes": 5, **arguments}
    return timm.create_model("wrn_16_8", **arguments).eval()


def count_parameters(depth: int, factor: int, num_classes: int) -> int:
    """Norms before the two 3x3 convolutions of a block, a bare 1x1 shortcut a stage, one norm."""
    total, before = 9 * 3 * 16, 16
    for after in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            total += 2 * before + 9 * before * after + 2 * after + 9 * after * after
            total += before * after if before != after else 0
            before = after
    return total + 2 * before + (before + 1) * num_classes


@pytest.mark.parametrize(
    ("name", "depth", "factor", "published"),
    [("wrn_28_10", 28, 10, 36_479_194), ("wrn_16_8", 16, 8, 10_961_370)],
)
def test_parameter_count(name, depth, factor, published):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == published
    assert count_parameters(depth, factor, 10) == published


def test_shortcut_of_a_wider_block_reads_the_activated_input():
    """Reference: the convolutions of the block applied by hand."""
    block = PreActivationBlock(3, 6, 2).train()
    x = images() * 3 + 1
    flat = x.transpose(0, 1).flatten(1)
    mean, var = flat.mean(dim=1), flat.var(dim=1, unbiased=False)
    active = ((x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()).clamp(min=0)
    hidden = functional.conv2d(active, block.conv1.weight, stride=2, padding=1)
    hidden = torch.relu(functional.batch_norm(hidden, None, None, training=True))
    expected = functional.conv2d(hidden, block.conv2.weight, padding=1)
    expected = expected + functional.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_block_of_equal_width_adds_to_its_input():
    block = PreActivationBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_dropout_stands_between_the_convolutions():
    """All dropped, a block of equal width is the identity."""
    block = PreActivationBlock(4, 4, 1, drop_rate=1.0).train()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)
    drops = [m.p for m in small_wrn(drop_rate=0.3).modules() if isinstance(m, torch.nn.Dropout)]
    assert drops == [0.3] * 3


def test_convolutions_start_with_the_paper_s_variance():
    """2 / (9 * channels out), as in the paper's code."""
    weight = small_wrn(width_factor=4).blocks[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_mean_of_the_dense_logits_is_the_image_logit():
    """The tokens are normed and activated, so none is negative."""
    backbone = ResNetBackbone(small_wrn())
    tokens = backbone(images(16, 24))
    assert tokens.grid == (4, 6)
    assert tokens.patch.min() >= 0
    torch.testing.assert_close(
        backbone.classify(tokens.patch).mean(dim=1), backbone.model(images(16, 24))
    )


def test_last_norm_is_left_out_of_the_levels_unless_asked_for():
    model = small_wrn()
    torch.nn.init.constant_(model.bn.bias, 1.0)
    final, levels = model.forward_intermediates(images())
    normed = model.forward_intermediates(images(), norm=True, intermediates_only=True)
    assert [tuple(x.shape[1:]) for x in levels] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert torch.equal(normed[-1], final)
    assert torch.equal(normed[0], levels[0])
    assert torch.equal(model.forward_features(images()), final)
    assert not torch.equal(levels[-1], final)


def test_wrapped_levels_are_those_of_the_whole_network():
    model = small_wrn()
    arguments = {"depth": 10, "width_factor": 1, "features_only": True, "out_indices": (0, 1)}
    wrapped = timm.create_model("wrn_16_8", **arguments).eval()
    wrapped.model.load_state_dict(model.state_dict(), strict=False)
    expected = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(wrapped(images()), expected, strict=True))
    assert not [name for name, _ in wrapped.named_parameters() if name.startswith("model.bn")]


def test_groups_put_the_last_norm_with_the_last_block():
    model = small_wrn()
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["conv.weight"] == 0
    assert [groups[f"blocks.{i}.bn1.weight"] for i in range(3)] == [1, 2, 3]
    assert groups["bn.weight"] == groups["blocks.2.bn1.weight"]


def test_depth_must_fill_the_stages():
    with pytest.raises(ConfigError, match=r"cannot have 20 layers; 10, 16, 22, 28, \.\.\."):
        timm.create_model("wrn_16_8", depth=20)


def test_image_must_have_two_cells_a_side():
    with pytest.raises(
        ConfigError, match=r"cells of 4 px .* 4 x 4 px; --data.image-size from 8 on"
    ):
        timm.create_model("wrn_16_8", img_size=4)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_into_one_graph(checkpointing):
    model = small_wrn()
    model.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()), model(images()))


def test_bfloat16_is_near_float32():
    model = small_wrn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    torch.testing.assert_close(logits.float(), model(images()), rtol=0.05, atol=0.05)
