"""Readouts in closed form: a class token, mean pooling, a CNN, and a token head of its own."""

import pytest
import torch
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.evaluate.classify import predict_logits
from smallvit.evaluate.readout import check_readout, describe_readout, own_readout, read_logits
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone, Tokens

READOUTS = ("cls", "cls+max", "mean")
SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2}
# A network with a class token, two that pool by the mean, one of timm's, one with a token head.
STAND_INS = {
    "vit_tiny": (SIZES, 16),
    "gani_swin": ({"embed_dim": 24}, 32),
    "resnet8_small": ({"width": 4}, 16),
    "convnext_atto_small": ({}, 16),
    "lvvit_small": (SIZES, 16),
}
SHARED = tuple(STAND_INS)[:4]
MEAN_POOLED = ("gani_swin", "resnet8_small")
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def build(name: str) -> tuple[AbstractBackbone, Tensor, Tokens]:
    """Build a network whose logits differ from class to class; return it with images, tokens."""
    settings, side = STAND_INS[name]
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name=name, **settings), num_classes=5, image_size=side)
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and module.out_features == 5:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        return backbone, images, backbone.eval()(images)


def linear(x: Tensor, head: nn.Linear) -> Tensor:
    return torch.einsum("...d,cd->...c", x, head.weight) + head.bias


@pytest.mark.parametrize("name", STAND_INS)
@torch.no_grad()
def test_an_auxiliary_or_own_head_is_read_as_the_formulas_say(name):
    backbone, _, tokens = build(name)
    if backbone.token_head is None:
        backbone.aux_head = nn.Linear(backbone.embed_dim, 5)
    head = backbone.token_head or backbone.aux_head
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight)
    by_token = torch.stack([linear(tokens.patch[:, i], head) for i in range(tokens.patch.shape[1])])
    cls = backbone.classify(tokens.pooled)
    expected = {"cls": cls, "cls+max": cls + by_token.amax(0) / 2, "mean": by_token.mean(0)}
    for readout in READOUTS:
        torch.testing.assert_close(read_logits(backbone, tokens, readout), expected[readout])


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_without_a_token_head_the_image_classifier_reads_every_token(name):
    backbone, _, tokens = build(name)
    by_token = torch.stack(
        [backbone.classify(tokens.patch[:, i]) for i in range(len(tokens.patch[0]))]
    )
    cls = backbone.classify(tokens.pooled)
    expected = {"cls": cls, "cls+max": cls + by_token.amax(0) / 2, "mean": by_token.mean(0)}
    for readout in READOUTS:
        logits = read_logits(backbone, tokens, readout)
        torch.testing.assert_close(logits, expected[readout], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_class_token_of_a_vit_is_read_by_its_head():
    backbone, images, tokens = build("vit_tiny")
    cls_token = backbone.model.forward_features(images)[:, 0]
    logits = read_logits(backbone, tokens, "cls")
    torch.testing.assert_close(logits, linear(cls_token, backbone.model.head))


@pytest.mark.parametrize("name", MEAN_POOLED)
@torch.no_grad()
def test_mean_of_shared_token_logits_is_the_logit_of_a_mean_pooled_network(name):
    backbone, images, tokens = build(name)
    logits = read_logits(backbone, tokens, "mean")
    torch.testing.assert_close(logits, backbone.model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STAND_INS)
@torch.no_grad()
def test_the_own_readout_is_what_the_plain_model_returns(name):
    backbone, images, tokens = build(name)
    assert own_readout(backbone) == ("cls+max" if name == "lvvit_small" else "cls")
    logits = read_logits(backbone, tokens, own_readout(backbone))
    torch.testing.assert_close(logits, backbone.model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_auxiliary_head_changes_no_logits_of_the_network_itself():
    backbone, images, tokens = build("vit_tiny")
    backbone.aux_head = nn.Linear(16, 5)
    assert own_readout(backbone) == "cls"
    torch.testing.assert_close(backbone.logits(tokens), backbone.model(images))


@pytest.mark.parametrize("readout", [None, *READOUTS])
@torch.no_grad()
def test_predictions_of_a_split_are_by_the_readout(readout):
    backbone, images, tokens = build("lvvit_small")
    batches = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([2]))]
    logits, labels = predict_logits(
        backbone, batches, autocast=lambda: torch.autocast("cpu", enabled=False), readout=readout
    )
    expected = read_logits(backbone, tokens, readout or "cls+max")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [0, 1, 2]


def test_the_head_that_is_read_is_named():
    vit, lvvit = build("vit_tiny")[0], build("lvvit_small")[0]
    assert describe_readout(vit, "cls") == "image classifier on pooled features"
    assert describe_readout(vit, "mean").endswith("the image classifier, which tokens share")
    vit.aux_head = nn.Linear(16, 5)
    assert describe_readout(vit, "mean") == "mean over tokens of the auxiliary token head"
    assert describe_readout(lvvit, "cls+max").endswith(
        "0.5 * max over tokens of the network's own token head"
    )


def test_tokens_alone_are_not_read_by_a_head_that_nothing_trained():
    backbone = build("lvvit_small")[0]
    check_readout(backbone, "mean")
    nn.init.zeros_(backbone.model.token_head.weight)
    check_readout(backbone, "cls+max")
    with pytest.raises(ConfigError, match=r"--readout mean: .* is at zero.*--readout cls"):
        check_readout(backbone, "mean")
