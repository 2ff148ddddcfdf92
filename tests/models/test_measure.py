import pytest
import timm
import torch
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor, nn

from smallvit.models.attention import choose_attention
from smallvit.models.measure import ModelFacts, build_on_meta, measure
from smallvit.models.resnet import ResNetBackbone
from smallvit.models.tokens import AbstractBackbone, Tokens
from smallvit.models.vit import VitBackbone


class OneLayer(AbstractBackbone[nn.Module]):
    """Pixels, one layer over their channels, and no classifier."""

    def __init__(self, layer: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.model = layer
        self.embed_dim = embed_dim
        self.patch_size = (1, 1)

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B H W 3"]:
        return images.movedim(1, -1)

    def encode(self, patches: Float[Tensor, "B H W 3"]) -> Tokens:
        if isinstance(self.model, nn.Conv2d):
            features = self.model(patches.movedim(-1, 1)).movedim(1, -1)
        else:
            features = self.model(patches.flatten(1, 2)).unflatten(1, patches.shape[1:3])
        return Tokens(
            patch=features.flatten(1, 2), cls=None, grid=(features.shape[1], features.shape[2])
        )

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return pooled


def vit(**arguments) -> VitBackbone:
    arguments = {"img_size": 32, "patch_size": 4, "dynamic_img_size": True, **arguments}
    return build_on_meta(
        lambda: VitBackbone(timm.create_model("vit_tiny_patch16_224", **arguments))
    )


def test_linear_layer():
    facts = measure(OneLayer(nn.Linear(3, 10), 10), (4, 6))
    assert facts == ModelFacts(parameters=40, macs=24 * 3 * 10, grid=(4, 6), embed_dim=10)


def test_convolution_with_stride_and_groups():
    facts = measure(OneLayer(nn.Conv2d(3, 9, 3, 2, 1, groups=3, bias=False), 9), 8)
    assert facts == ModelFacts(parameters=81, macs=16 * 81, grid=(4, 4), embed_dim=9)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_counts_alike_fused_and_plain(fused):
    """T D (3 D + D) for queries, keys, values and projection, 2 T T D for the two products."""
    attention = Attention(3, num_heads=1)
    attention.fused_attn = fused
    assert measure(OneLayer(attention, 3), 4).macs == 16 * 3 * 12 + 2 * 16 * 16 * 3


def test_attention_that_chooses_its_implementation_counts_the_same():
    plain, choosing = vit(), vit()
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    choose_attention(choosing)
    assert measure(plain, 32) == measure(choosing, 32)


def test_vit_for_small_images_costs_what_is_published():
    """189.8 M in aanna0701/SPT_LSA_ViT@54bd796, README, whose ViT has 9 blocks and patches of 8 px.

    The figure fits images of 64 px and 200 classes, which are those of its Tiny-ImageNet column.
    """
    arguments = {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2, "num_classes": 200}
    facts = measure(vit(img_size=64, patch_size=8, **arguments), 64)
    block = 65 * 192 * 192 * (4 + 4) + 2 * 65 * 65 * 192
    assert facts.macs == 64 * 192 * 192 + 9 * block + 200 * 192
    assert facts.macs == pytest.approx(189.8e6, rel=0.002)


def test_resnet56_costs_what_is_published():
    """125.49 M in Lin et al., 2020, HRank, https://arxiv.org/abs/2002.10179; plus 1x1 shortcuts.

    Every 3x3 convolution costs the same, as channels double where sides halve; the first one of
    the second and third stage, with half the channels to read, costs half.
    """
    backbone = build_on_meta(lambda: ResNetBackbone(timm.create_model("resnet56_small")))
    convolution = 32 * 32 * 16 * 16 * 9
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    facts = measure(backbone, 32)
    assert facts.macs == 32 * 32 * 27 * 16 + 53 * convolution + 64 * 10 + shortcuts
    assert facts.macs - shortcuts == pytest.approx(125.49e6, abs=5e3)


def test_class_token_that_passes_between_modules_is_no_obstacle():
    """The counter's hooks refuse parameters that need gradients as inputs of a module."""

    class Passing(OneLayer):
        def encode(self, patches: Float[Tensor, "B H W 3"]) -> Tokens:
            self.model(self.model.weight)
            return super().encode(patches)

    assert measure(Passing(nn.Linear(3, 3), 3), 4).macs == 9 * 16 + 27


def test_measuring_leaves_the_model_as_it_is():
    backbone = OneLayer(nn.Linear(3, 10), 10).train()
    before = backbone.model.weight.clone()
    measure(backbone, 4)
    assert backbone.training
    assert backbone.model.weight.requires_grad
    assert torch.equal(backbone.model.weight, before)


def test_building_on_meta_takes_neither_memory_nor_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    backbone = vit()
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert torch.equal(torch.rand(1), expected)
    assert torch.empty(1).device.type == "cpu"


def test_measuring_on_the_meta_device_needs_no_copy_and_leaves_no_trace():
    backbone = vit()
    backbone.model.blocks[0].eval()
    backbone.model.cls_token.requires_grad = False
    first = measure(backbone, 32)
    assert measure(backbone, 32) == first
    assert backbone.training
    assert backbone.model.blocks[1].training
    assert not backbone.model.blocks[0].training
    trained = [name for name, p in backbone.model.named_parameters() if not p.requires_grad]
    assert trained == ["cls_token"]
