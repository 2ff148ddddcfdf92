from typing import Any

import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone, create_exported
from smallvit.teachers.adopt import (
    fit_classifier,
    linear_classifier,
    match_colors,
    mean_pooling,
    read_features,
    set_classifier,
)
from smallvit.teachers.teacher import Teacher

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}
VIT = SMALL | {"num_classes": 3, "dynamic_img_size": True}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OURS = ((0.3, 0.4, 0.5), (0.2, 0.25, 0.3))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def samples(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of classes that overlap, on scales far from 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20 * num_classes) % num_classes
    centres = torch.randn(num_classes, 6, generator=generator)
    noise = torch.randn(len(labels), 6, generator=generator)
    scale, shift = torch.tensor([0.01, 1, 100, 3, 1, 0.5]), torch.tensor([5.0, 0, -40, 1, 2, 0])
    return (centres[labels] + noise) * scale + shift, labels


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_the_folded_classifier_gives_the_probabilities_of_scikit_learns_pipeline(num_classes):
    features, labels = samples(num_classes)
    weight, bias = fit_classifier(features, labels, num_classes=num_classes)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(features.double().numpy(), labels.numpy())
    expected = torch.from_numpy(pipeline.predict_proba(features.double().numpy())).float()
    assert weight.shape == (num_classes, 6)
    found = (features @ weight.T + bias).softmax(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_feature_that_never_changes_does_no_harm():
    features, labels = samples(3)
    features[:, 2] = 7
    weight, bias = fit_classifier(features, labels, num_classes=3)
    assert weight.isfinite().all()
    assert bias.isfinite().all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224"])
def test_with_mean_pooling_the_image_logit_is_the_mean_of_the_map(name):
    arguments = dict(VIT) if name.startswith("vit") else SMALL | {"num_classes": 3}
    plain = create_exported(name, arguments)
    pooling = mean_pooling(plain)
    backbone = create_exported(name, arguments | pooling).eval()
    backbone.model.load_state_dict(plain.model.state_dict())  # the same weights, by name
    assert mean_pooling(backbone) == {}
    with torch.no_grad():
        dense = backbone.classify_tokens(backbone(images()).patch)
        torch.testing.assert_close(dense.mean(dim=1), backbone.model(images()))


@pytest.mark.parametrize("name", ["resnet8_small", "gani_swin", "cct_7_3x1"])
def test_what_reads_no_class_token_keeps_its_pooling(name):
    config = ModelConfig(name=name, depth=1) if name == "cct_7_3x1" else ModelConfig(name=name)
    assert mean_pooling(create_backbone(config, num_classes=3, image_size=32)) == {}


def test_features_are_what_the_classifier_reads_also_behind_a_norm():
    """A ViT that norms after pooling: the norm of each token, and the norm of their mean."""
    backbone = create_exported("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}).eval()
    model = backbone.model
    nn.init.normal_(model.fc_norm.weight, generator=torch.Generator().manual_seed(0))
    patch, pooled = read_features(backbone, images())
    with torch.no_grad():
        tokens = model.forward_features(images())[:, 1:]
        torch.testing.assert_close(patch, model.fc_norm(tokens).mean(dim=1))
        torch.testing.assert_close(pooled, model.fc_norm(tokens.mean(dim=1)))


def test_features_of_a_network_that_pools_by_the_mean_are_one():
    config = ModelConfig(name="resnet8_small", width=4)
    backbone = create_backbone(config, num_classes=3, image_size=16)
    patch, pooled = read_features(backbone, images())
    torch.testing.assert_close(patch, pooled, atol=1e-5, rtol=1e-4)


def test_a_new_classifier_goes_into_the_token_head_too():
    config = ModelConfig(name="lvvit_tiny", embed_dim=24, depth=1, num_heads=2)
    backbone = create_backbone(config, num_classes=3, image_size=32)
    weight, bias = torch.randn(3, 24), torch.tensor([0.0, 9.0, 0.0])
    set_classifier(backbone, weight, bias)
    for layer in (backbone.model.head, backbone.model.token_head):
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)


def test_the_map_of_a_fitted_network_finds_where_a_colour_is():
    """A frozen CNN with a classifier fitted on whole images tells places of one image apart."""
    torch.manual_seed(0)
    config = ModelConfig(name="resnet8_small", width=8)
    backbone = create_backbone(config, num_classes=2, image_size=16)
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(40, 3, 16, 16, generator=generator)
    labels = torch.arange(40) % 2
    noise[labels == 0, 0] += 2  # red
    noise[labels == 1, 2] += 2  # blue
    patch, _ = read_features(backbone, noise)
    set_classifier(backbone, *fit_classifier(patch, labels, num_classes=2))
    half = torch.cat([noise[:1, :, :, :8], noise[1:2, :, :, 8:]], dim=3)
    dense = Teacher(backbone)(half)
    assert (dense[0, 0, :, 0] > 0.5).all()
    assert (dense[0, 1, :, -1] > 0.5).all()


def test_no_new_classifier_is_fitted_where_it_is_no_linear_layer():
    backbone = create_exported("levit_128s", {"img_size": 64, "num_classes": 3, "distilled": False})
    with pytest.raises(ConfigError, match=r"no linear classifier with a bias \(NormLinear\)"):
        linear_classifier(backbone)


def test_a_vit_reads_images_of_other_colours_as_its_own():
    """Closed form: its patch embedding has a bias and no padding, so all logits are the same."""
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=3).eval()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    with torch.no_grad():
        expected = model(normalised(*IMAGENET))
        note = match_colors(model, trained=IMAGENET, now=OURS)
        torch.testing.assert_close(model(normalised(*OURS)), expected, atol=1e-5, rtol=1e-4)
    assert note is not None
    assert "mean and std of this data set put into patch_embed.proj" in note


def test_a_convolution_without_a_bias_gets_the_scale_alone():
    model: Any = timm.create_model("resnet8_small", width=4, num_classes=3)
    before = model.conv.weight.clone()
    note = match_colors(model, trained=IMAGENET, now=OURS)
    ratio = torch.tensor(OURS[1]) / torch.tensor(IMAGENET[1])
    torch.testing.assert_close(model.conv.weight, before * ratio[:, None, None])
    assert note is not None
    assert ": std of this data set put into conv" in note


def test_the_same_colours_leave_every_weight():
    model: Any = timm.create_model("resnet8_small", width=4, num_classes=3)
    before = model.conv.weight.clone()
    assert match_colors(model, trained=OURS, now=OURS) is None
    assert torch.equal(model.conv.weight, before)
