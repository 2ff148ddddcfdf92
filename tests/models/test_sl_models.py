import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smallvit.core.errors import ConfigError
from smallvit.models.cait import CaitBackbone
from smallvit.models.locality import TalkingHeadsLocalityAttention
from smallvit.models.sl_models import AbsolutePositions, ClassBlock
from smallvit.models.swin import SwinBackbone
from smallvit.models.transformer import TransformerBackbone

SMALL = {
    "sl_vit": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "sl_cait": {"embed_dim": 16, "depth": 2, "num_heads": 2, "head_dim": 4},
    "sl_swin": {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
}
BACKBONES = {"sl_vit": TransformerBackbone, "sl_cait": CaitBackbone, "sl_swin": SwinBackbone}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, **arguments: object) -> nn.Module:
    """Build it with every parameter of a size at which an error shows."""
    model = timm.create_model(name, **SMALL[name], **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def meta(name: str, **arguments: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_positions_are_resampled_for_other_grids_alone():
    positions = AbsolutePositions(grid_size=(2, 4), embed_dim=3)
    zeros = torch.zeros(1, 2, 4, 3)
    assert torch.equal(positions(zeros), positions.pos_embed.unflatten(1, (2, 4)))
    expected = resample_abs_pos_embed(positions.pos_embed, [3, 5], [2, 4], num_prefix_tokens=0)
    assert torch.equal(positions(torch.zeros(1, 3, 5, 3)).flatten(1, 2), expected)


@pytest.mark.parametrize("name", SMALL)
def test_temperature_starts_at_the_usual_scale_and_learns(name):
    model = timm.create_model(name, **SMALL[name])
    found = {key: value for key, value in model.named_parameters() if "temperature" in key}
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    head_dim = 4 if name == "sl_cait" else 8
    assert len(found) == (2 if name == "sl_vit" else 4)
    for temperature in found.values():
        torch.testing.assert_close(temperature, torch.full_like(temperature, head_dim**-0.5))
        assert temperature.grad.abs().sum() > 0


def test_class_token_reads_patch_tokens_as_they_are():
    """One patch token gets all attention, so the branch is a projection of it, not of its norm."""
    attn = TalkingHeadsLocalityAttention(embed_dim=8, num_heads=2, head_dim=4)
    block = ClassBlock(embed_dim=8, attn=attn, hidden_dim=16)
    nn.init.zeros_(block.gamma_2)
    patch, cls = 10 * torch.randn(3, 1, 8) + 5, torch.randn(3, 1, 8)
    value = (patch @ attn.qkv.weight[16:].mT).unflatten(2, (2, 4))
    branch = attn.proj((value * attn.mix_weights.sum(1)[:, None]).flatten(2))
    torch.testing.assert_close(block(patch, cls), cls + 0.1 * branch)


def patch_parameters(size: int, chans: int, out: int) -> int:
    inputs = 5 * size**2 * chans
    return 2 * inputs + inputs * out + out


def mlp_parameters(width: int) -> int:
    return 2 * width * 2 * width + 3 * width


@pytest.mark.parametrize(
    ("img_size", "patch", "num_classes", "total"),
    [(32, 4, 10, 2_729_878), (64, 8, 200, 2_906_228)],
)
def test_sl_vit_has_the_papers_parameters(img_size, patch, num_classes, total):
    """The paper states 2.9 M, which is the network for Tiny-ImageNet."""
    block = 4 * 192 + 4 * 192**2 + 192 + 12 + mlp_parameters(192)
    ends = 192 + 65 * 192 + 2 * 192 + 192 * num_classes + num_classes
    assert patch_parameters(patch, 3, 192) + 9 * block + ends == total
    assert num_parameters(meta("sl_vit", img_size=img_size, num_classes=num_classes)) == total


@pytest.mark.parametrize(
    ("img_size", "patch", "num_classes", "total"),
    [(32, 4, 10, 9_058_066), (64, 8, 200, 9_234_416)],
)
def test_sl_cait_has_the_papers_parameters(img_size, patch, num_classes, total):
    """The paper states 9.2 M, which is the network for Tiny-ImageNet: heads of 64 channels."""
    attention = 4 * 192 * 256 + 192 + 2 * 4**2 + 4
    block = 4 * 192 + attention + mlp_parameters(192) + 2 * 192
    ends = 192 + 64 * 192 + 2 * 192 + 192 * num_classes + num_classes
    assert patch_parameters(patch, 3, 192) + 26 * block + ends == total
    assert num_parameters(meta("sl_cait", img_size=img_size, num_classes=num_classes)) == total


@pytest.mark.parametrize(
    ("img_size", "patch", "num_classes", "total"),
    [(32, 2, 10, 8_562_166), (64, 4, 200, 8_652_956)],
)
def test_sl_swin_has_the_parameters_of_the_authors_code(img_size, patch, num_classes, total):
    """The paper states 10.2 M; its operations, tested below, are those of this network."""
    merging = patch_parameters(2, 96, 192) + patch_parameters(2, 192, 384)
    blocks = sum(
        depth * (4 * width + 4 * width**2 + 4 * width + 50 * heads + mlp_parameters(width))
        for width, depth, heads in ((96, 2, 3), (192, 6, 6), (384, 4, 12))
    )
    ends = 16**2 * 96 + 2 * 384 + 384 * num_classes + num_classes
    assert patch_parameters(patch, 3, 96) + merging + blocks + ends == total
    assert num_parameters(meta("sl_swin", img_size=img_size, num_classes=num_classes)) == total


@pytest.mark.parametrize(("name", "published"), [("sl_vit", 199.2e6), ("sl_swin", 284.9e6)])
def test_operations_are_the_papers(name, published):
    """Multiply-adds at 64 px; the paper's count has norms and softmax too."""
    model = meta(name, img_size=64, num_classes=200).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 64, 64, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(published, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "patches"), [("sl_vit", (4, 8, 16)), ("sl_cait", (4, 8, 16)), ("sl_swin", (2, 4, 4))]
)
def test_the_patch_follows_the_image_size(name, patches):
    for img_size, patch in zip((32, 64, 224), patches, strict=True):
        model = meta(name, img_size=img_size, **SMALL[name])
        assert model.patch_embed.patch_size == (patch, patch)


def test_layer_scale_starts_small_in_late_blocks():
    # models/cait.py of aanna0701/SPT_LSA_ViT@54bd796: 0.1 to the 18th block, 1e-5 to the 24th.
    model = timm.create_model("sl_cait", **SMALL["sl_cait"] | {"depth": 26})
    starts = [block.gamma_2.unique().item() for block in model.blocks]
    assert starts == pytest.approx([0.1] * 18 + [1e-5] * 6 + [1e-6] * 2)


@pytest.mark.parametrize("name", SMALL)
def test_backbone_logits_are_the_models(name):
    model = build(name, img_size=(16, 32), patch_size=4).eval()
    backbone, images = BACKBONES[name](model), torch.randn(2, 3, 16, 32)
    torch.testing.assert_close(backbone.logits(backbone(images)), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_plain_models_compile_into_one_graph(name, without_shape_checks):
    model, images = build(name, img_size=16, patch_size=4).eval(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_timms_other_ways_through_the_model_work(name):
    model = build(name, img_size=32, patch_size=4, drop_path_rate=0.0)
    images = torch.randn(2, 3, 32, 32)
    last, levels = model.forward_intermediates(images)
    torch.testing.assert_close(last, model.forward_features(images))
    assert [level.shape[2] for level in levels] == ([8, 4] if name == "sl_swin" else [8, 8])
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (6, 10)])
def test_plain_sl_swin_takes_images_of_any_size(grid):
    model = build("sl_swin", img_size=32, patch_size=4).eval()
    images = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
    tokens = SwinBackbone(model)(images)
    assert tokens.grid == (grid[0] // 2, grid[1] // 2)
    torch.testing.assert_close(model.head.fc(tokens.pooled), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_a_patch_that_does_not_divide_the_image_is_refused(name):
    with pytest.raises(ConfigError, match=r"patch_size \(5\) must divide images of 32 x 32 px"):
        timm.create_model(name, img_size=32, patch_size=5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"num_heads \(5\) must divide embed_dim \(192\)"):
        timm.create_model("sl_vit", num_heads=5)
    with pytest.raises(ConfigError, match=r"num_heads \(5\) must divide embed_dim \(384\)"):
        timm.create_model("sl_swin", num_heads=(3, 6, 5))
