import itertools

import pytest
import timm
import torch

from smallvit.core.errors import ConfigError
from smallvit.models.resnet import ResNetBackbone, SmallResNet, stage_strides

RESNETS = ("resnet8_small", "resnet14_small", "resnet20_small", "resnet56_small", "resnet18_small")


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def small_resnet(**arguments) -> SmallResNet:
    torch.manual_seed(0)
    return timm.create_model("resnet8_small", **{"width": 4, "num_classes": 5, **arguments}).eval()


def count_parameters(depth: int, width: int, num_stages: int, num_classes: int) -> int:
    """Convolutions of 9 weights a pair of channels, two values of batch norm a channel."""
    total = 9 * 3 * width + 2 * width
    before = width
    for stage in range(num_stages):
        after = width * 2**stage
        for _ in range((depth - 2) // (2 * num_stages)):
            total += 9 * before * after + 9 * after * after + 4 * after
            total += before * after + 2 * after if before != after else 0
            before = after
    return total + before * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "depth", "width"), [("resnet20_small", 20, 16), ("resnet8_small", 8, 4)]
)
def test_parameter_count(name, depth, width):
    model = timm.create_model(name, width=width, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(depth, width, 3, 10)


def test_resnet20_has_the_published_size():
    """0.27 M in He et al., 2016, table 6; 1x1 shortcuts add 2,752."""
    model = timm.create_model("resnet20_small")
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 2_752


def test_resnet18_has_the_size_of_torchvisions_but_for_stem_and_classes():
    """11,689,512 at 1000 classes; 7x7 becomes 3x3, and 990 classes fall away."""
    with torch.device("meta"):
        model = timm.create_model("resnet18_small")
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert 11_173_962 == 11_689_512 - 3 * 64 * (49 - 9) - 990 * 513


def test_resnet18_computes_what_timms_does_with_a_small_stem():
    """Reference: timm's ResNet-18 without pooling, the same weights under its own names."""
    torch.manual_seed(0)
    ours = timm.create_model("resnet18_small", num_classes=5).eval()
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = torch.nn.Identity()

    def renamed(key: str) -> str:
        for old, new in (("conv.", "conv1."), ("bn.", "bn1."), ("shortcut", "downsample")):
            key = key.replace(old, new)
        if not key.startswith("blocks"):
            return key
        _, block, rest = key.split(".", 2)
        return f"layer{int(block) // 2 + 1}.{int(block) % 2}.{rest}"

    theirs.load_state_dict({renamed(key): value for key, value in ours.state_dict().items()})
    torch.testing.assert_close(ours(images()), theirs(images()))


def test_depth_must_fill_the_stages():
    with pytest.raises(ConfigError, match=r"3 stages cannot have 9 layers; 8, 14, 20, \.\.\."):
        timm.create_model("resnet8_small", depth=9)
    with pytest.raises(ConfigError, match=r"4 stages cannot have 20 layers; 10, 18, 26, \.\.\."):
        timm.create_model("resnet18_small", depth=20)


def test_image_must_have_two_cells_a_side():
    with pytest.raises(
        ConfigError, match=r"cells of 8 px .* 32 x 12 px; --data.image-size from 16 on"
    ):
        timm.create_model("resnet18_small", img_size=(32, 12))


@pytest.mark.parametrize(("stride", "strides"), [(1, (1, 1, 1)), (2, (1, 2, 1)), (4, (1, 2, 2))])
def test_stage_strides_make_the_cell(stride, strides):
    assert stage_strides(stride, 3) == strides


def test_cell_that_stages_cannot_make_is_refused():
    with pytest.raises(ConfigError, match="4 stages cannot make cells of 3 px; 1, 2, 4, 8 would"):
        stage_strides(3, 4)


def test_mean_of_the_dense_logits_is_the_image_logit():
    backbone = ResNetBackbone(small_resnet())
    dense = backbone.classify(backbone(images()).patch)
    assert dense.shape == (2, 16, 5)
    torch.testing.assert_close(dense.mean(dim=1), backbone.model(images()))


def test_classify_of_pooled_is_the_model():
    backbone = ResNetBackbone(small_resnet())
    tokens = backbone(images())
    assert tokens.cls is None
    torch.testing.assert_close(backbone.classify(tokens.pooled), backbone.model(images()))


@pytest.mark.parametrize(
    ("name", "strides", "grid"),
    [
        ("resnet8_small", (1, 1, 1), (16, 24)),
        ("resnet8_small", (1, 2, 1), (8, 12)),
        ("resnet20_small", (1, 2, 2), (4, 6)),
        ("resnet18_small", (1, 2, 2, 2), (2, 3)),
    ],
)
def test_strides_are_the_size_of_a_cell(name, strides, grid):
    model = timm.create_model(name, width=4, strides=strides).eval()
    assert ResNetBackbone(model)(images(16, 24)).grid == grid


def test_cells_are_row_major():
    """A change in the top right corner reaches the last cell of the first row."""
    backbone = ResNetBackbone(small_resnet())
    changed = images()
    changed[:, :, 0, 15] += 10
    moved = (backbone(images()).patch - backbone(changed).patch).abs().sum(dim=(0, 2))
    assert moved.unflatten(0, (4, 4))[0, 3] > 0
    assert moved.unflatten(0, (4, 4))[3, 0] == 0


@pytest.mark.parametrize("name", RESNETS)
def test_features_of_every_stage_are_as_described(name):
    model = timm.create_model(name, width=4).eval()
    final, levels = model.forward_intermediates(images(32, 16))
    for level, info in zip(levels, model.feature_info, strict=True):
        cell = info["reduction"]
        assert level.shape == (2, info["num_chs"], 32 // cell, 16 // cell)
    assert torch.equal(final, model.forward_features(images(32, 16)))
    assert torch.equal(final, levels[-1])


def test_stopping_early_gives_the_same_levels():
    model = small_resnet()
    whole = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    part = model.forward_intermediates(images(), [0, 1], stop_early=True, intermediates_only=True)
    assert len(part) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


def test_timms_feature_wrapper_keeps_only_the_stages_asked_for():
    wrapped = timm.create_model("resnet8_small", width=4, features_only=True, out_indices=(0, 1))
    assert wrapped.feature_info.channels() == [4, 8]
    assert wrapped.feature_info.reduction() == [1, 2]
    assert [tuple(level.shape) for level in wrapped(images())] == [(2, 4, 16, 16), (2, 8, 8, 8)]
    assert not [
        name for name, _ in wrapped.named_parameters() if "blocks.2" in name or "fc" in name
    ]


def test_checkpointing_leaves_outputs_and_gradients_alone():
    grads = []
    for checkpointing in (False, True):
        model = small_resnet().train()
        model.set_grad_checkpointing(checkpointing)
        model(images()).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*grads, strict=True))


def test_checkpointing_computes_each_block_again():
    model, calls = small_resnet(), []
    model.blocks[0].conv1.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(images()).sum().backward()
    assert len(calls) == 2


def test_groups_put_stem_first_blocks_by_depth_and_head_last():
    model = small_resnet(num_classes=3)
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["conv.weight"] == groups["bn.weight"] == 0
    assert [groups[f"blocks.{i}.conv1.weight"] for i in range(3)] == [1, 2, 3]
    assert groups["fc.weight"] > 3


def test_new_classifier_reads_the_same_features():
    model = small_resnet()
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model(images()), model.forward_features(images()).mean(dim=(2, 3)))


@pytest.mark.usefixtures("without_shape_checks")
def test_compiles_into_one_graph_with_and_without_checkpointing():
    for checkpointing, size in itertools.product((False, True), ((16, 16), (8, 12))):
        model = small_resnet()
        model.set_grad_checkpointing(checkpointing)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images(*size)), model(images(*size)))


def test_bfloat16_is_near_float32():
    model = small_resnet()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(images()), rtol=0.05, atol=0.05)
