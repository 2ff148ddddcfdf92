import copy

import pytest
import timm
import torch

from smallvit.core.errors import ConfigError
from smallvit.models.timm_model import FeatureLayout, TimmBackbone

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# timm's names by the layout of their features: arguments at 32 px and the token grid.
ZOO = {
    "resnet18": ({"channels": (8, 8, 8, 8)}, (1, 1)),  # feature map, linear classifier
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16), "patch_size": 1}, (4, 4)),
    "mobilenetv3_small_050": ({}, (1, 1)),  # a convolution after pooling
    "mobilenetv4_conv_small_050": ({}, (1, 1)),  # and a batch norm
    "swinv2_tiny_window8_256": (
        {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
        (8, 8),
    ),
    "xcit_nano_12_p8_224": (TINY, (4, 4)),
    "convit_tiny": ({**TINY, "patch_size": 4, "local_up_to_layer": 1}, (8, 8)),
    "eva02_tiny_patch14_224": ({**TINY, "patch_size": 4, "dynamic_img_size": True}, (8, 8)),
    "vit_small_patch16_dinov3": ({**TINY, "embed_dim": 32, "patch_size": 4}, (8, 8)),
    "hiera_tiny_224": ({"stages": (1, 1, 1, 1), "embed_dim": 8, "num_heads": 1}, (1, 1)),
    "volo_d1_224": ({"patch_size": 4}, (4, 4)),
    "levit_128s": ({"distilled": False}, (1, 1)),  # its classifier opens with a batch norm
    "twins_svt_small": ({"depths": (1, 1, 1, 1)}, (1, 1)),
}
SIZELESS = {"resnet18", "convnext_atto", "mobilenetv3_small_050", "mobilenetv4_conv_small_050"}


def wrap(name: str) -> TimmBackbone:
    arguments, _ = ZOO[name]
    torch.manual_seed(0)
    if name not in SIZELESS:
        arguments = {**arguments, "img_size": 32}
    return TimmBackbone(timm.create_model(name, num_classes=5, **arguments)).eval()


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ZOO)
def test_logits_of_the_tokens_are_those_of_the_model(name):
    backbone = wrap(name)
    tokens = backbone(images())
    assert tokens.grid == ZOO[name][1]
    assert tokens.patch.shape == (2, tokens.grid[0] * tokens.grid[1], backbone.embed_dim)
    assert backbone.classify_tokens(tokens.patch).shape == (*tokens.patch.shape[:2], 5)
    torch.testing.assert_close(backbone.logits(tokens), backbone.model(images()))


@pytest.mark.parametrize(
    ("name", "axes", "num_prefix"),
    [
        ("resnet18", "NCHW", 0),
        ("swinv2_tiny_window8_256", "NHWC", 0),
        ("levit_128s", "NLC", 0),
        ("volo_d1_224", "NLC", 1),
        ("vit_small_patch16_dinov3", "NLC", 5),
    ],
)
def test_layout_is_found(name, axes, num_prefix):
    layout = wrap(name).layout
    assert (layout.axes, layout.num_prefix) == (axes, num_prefix)


def test_linear_pooling_is_the_mean_of_the_patch_tokens():
    """Closed form for a mean and a linear classifier: their order does not matter."""
    backbone = wrap("resnet18")
    tokens = backbone(images(64, 96))
    assert tokens.grid == (2, 3)
    torch.testing.assert_close(tokens.patch.mean(dim=1), tokens.cls)
    torch.testing.assert_close(
        backbone.classify_tokens(tokens.patch).mean(dim=1), backbone.model(images(64, 96))
    )


def test_patch_tokens_pass_the_heads_own_norm():
    """ConvNeXt normalises after pooling: so is every token, or the classifier misreads it."""
    backbone = wrap("convnext_atto")
    torch.nn.init.normal_(backbone.model.head.norm.weight)
    features = backbone.model.forward_features(images()).movedim(1, -1).flatten(1, 2)
    weight, bias = backbone.model.head.norm.weight, backbone.model.head.norm.bias
    expected = torch.nn.functional.layer_norm(features, (16,), weight, bias, eps=1e-6)
    torch.testing.assert_close(backbone(images()).patch, expected)


@pytest.mark.parametrize("name", ["convit_tiny", "vit_small_patch16_dinov3"])
def test_prefix_tokens_are_no_patch_tokens(name):
    backbone = wrap(name)
    features = backbone.model.forward_features(images())
    expected = features[:, backbone.layout.num_prefix :]
    if backbone.model.global_pool == "avg":
        expected = backbone.model.fc_norm(expected)
    torch.testing.assert_close(backbone(images()).patch, expected)


def test_volo_reads_out_its_token_head():
    backbone = wrap("volo_d1_224")
    tokens = backbone(images())
    assert backbone.token_head is backbone.model.aux_head
    expected = backbone.model.aux_head(backbone.model.forward_features(images())[:, 1:])
    torch.testing.assert_close(backbone.classify_tokens(tokens.patch), expected)


def test_patches_are_row_major():
    """A feature map of single pixels, each one's place written into it."""
    backbone = wrap("swinv2_tiny_window8_256")
    features = torch.arange(64.0).reshape(1, 8, 8, 1).expand(2, -1, -1, 16)
    backbone.model.forward_features = lambda x: features
    tokens = backbone(images())
    assert tokens.patch[0, :, 0].tolist() == list(range(64))


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48)])
def test_models_that_take_other_sizes_give_their_grid(size):
    backbone = wrap("eva02_tiny_patch14_224")
    tokens = backbone(images(*size))
    assert tokens.grid == (size[0] // 4, size[1] // 4)
    torch.testing.assert_close(backbone.logits(tokens), backbone.model(images(*size)))


def test_grid_of_other_sizes_is_rounded_as_the_model_rounds():
    layout = FeatureLayout(axes="NLC", num_prefix=0, img_size=(64, 64), grid_size=(2, 2))
    assert layout.grid(48, 96, num_patches=3) == (1, 3)
    assert layout.grid(48, 96, num_patches=6) == (2, 3)
    with pytest.raises(ConfigError, match="5 tokens of 48 x 96 px make no grid"):
        layout.grid(48, 96, num_patches=5)


def test_looking_at_a_model_changes_nothing():
    model = timm.create_model("resnet18", num_classes=5, channels=(8, 8, 8, 8))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()
    backbone = TimmBackbone(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert backbone.training


def test_models_without_values_can_be_counted():
    with torch.device("meta"):
        backbone = TimmBackbone(timm.create_model("resnet18", num_classes=5))
        assert backbone(torch.empty(1, 3, 64, 64)).grid == (2, 2)
    assert sum(p.numel() for p in backbone.parameters()) == 11_176_512 + 512 * 5 + 5


@pytest.mark.parametrize("name", ["convnext_atto", "eva02_tiny_patch14_224"])
def test_compiles_into_one_graph_at_every_size(name, without_shape_checks):
    backbone = wrap(name)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for size in ((32, 32), (64, 32)):
        torch.testing.assert_close(compiled(images(*size)).patch, backbone(images(*size)).patch)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("deit_tiny_distilled_patch16_224", TINY, "VisionTransformerDistilled has more than one"),
        ("levit_128s", {}, "LevitDistilled has more than one classifier: try deit_tiny"),
        ("pit_ti_224", {"patch_size": 4, "stride": 2}, "gives no grid of patch tokens"),
        ("dla46x_c", {}, "DLA has a convolution for a classifier: try resnet18"),
    ],
)
def test_models_that_cannot_be_seen_as_tokens_are_refused(name, arguments, message):
    if name != "dla46x_c":
        arguments = {**arguments, "img_size": 32}
    model = timm.create_model(name, **arguments)
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(model)


@pytest.mark.parametrize("name", ["levit_128s", "mobilenetv4_conv_small_050"])
def test_batch_norms_of_the_head_count_images_alone(name):
    """Reference: training steps of timm's model; patch tokens would be other values, and more."""
    backbone = wrap(name)
    twin, x = copy.deepcopy(backbone.model).train(), images().repeat(2, 1, 1, 1)
    twin(x)
    tokens = backbone.train()(x)
    backbone.logits(tokens)
    backbone.classify_tokens(tokens.patch)
    torch.testing.assert_close(dict(backbone.model.named_buffers()), dict(twin.named_buffers()))
    assert all(module.training for module in backbone.modules())
