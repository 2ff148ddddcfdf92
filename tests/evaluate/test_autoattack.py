import importlib.util
import logging
import sys

import pytest
import torch

from smallvit.core.errors import ConfigError
from smallvit.evaluate.attacks import robust_correct
from smallvit.evaluate.autoattack import autoattack
from smallvit.evaluate.classify import predicted_classes

PIXELS = 3 * 8**2
installed = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="needs the extra robust"
)


def example(linear, num_classes: int, num_images: int = 6):
    """A linear classifier, images and the classes that it takes them for."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_classes, PIXELS, generator=generator)
    classifier = linear(weight - weight.mean(dim=1, keepdim=True), image_size=8)
    images = 0.4 + 0.2 * torch.rand(num_images, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return classifier, images, predicted_classes(classifier(images))


def test_without_the_package_the_message_says_how_to_get_it(linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ConfigError, match=r"pip install 'smallvit\[robust\]'$"):
        autoattack(*example(linear, 10), eps=0.1, seed=0)


@installed
@pytest.mark.parametrize(
    ("num_classes", "attacks", "targets"),
    [
        (2, ("apgd-ce", "fab-t", "square"), 1),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square"), 2),
        (4, ("apgd-ce", "apgd-t", "fab-t", "square"), 3),
        (10, ("apgd-ce", "apgd-t", "fab-t", "square"), 9),
        (12, ("apgd-ce", "apgd-t", "fab-t", "square"), 9),
    ],
)
def test_few_classes_have_fewer_targets_and_no_attack_that_compares_more(
    num_classes, attacks, targets, linear
):
    classifier, images, labels = example(linear, num_classes)
    result = autoattack(classifier, images, labels, eps=0.2, seed=0)
    assert not result.correct.any()
    assert (result.attacks, result.num_targets) == (attacks, targets)
    assert result.package.startswith("pyautoattack 0.")
    assert not any("classes" in flag for flag in result.flags)


@installed
def test_on_a_linear_network_just_the_images_within_eps_of_a_plane_fall(linear):
    classifier, images, labels = example(linear, 2)
    weight = classifier.backbone.model.weight.detach()
    with torch.no_grad():
        distance = classifier(images).diff(dim=1)[:, 0].abs() / weight.diff(dim=0).abs().sum()
    eps = (distance.sort().values[3:5].sum() / 2).item()
    result = autoattack(classifier, images, labels, eps=eps, seed=0)
    assert torch.equal(result.correct, distance > eps)
    mine = robust_correct(classifier, [(images, labels)], attack="pgd", eps=[eps])[eps]
    assert torch.equal(result.correct, mine)


@installed
def test_the_plus_version_of_two_classes_runs_no_loss_of_more(linear):
    classifier, images, labels = example(linear, 2, num_images=2)
    result = autoattack(classifier, images, labels, eps=0.2, seed=0, version="plus")
    assert result.attacks == ("apgd-ce", "fab", "square", "fab-t")


@installed
def test_a_misclassified_image_counts_as_fooled(linear):
    classifier, images, labels = example(linear, 10)
    labels[0] = (labels[0] + 1) % 10
    assert not autoattack(classifier, images, labels, eps=0.2, seed=0).correct[0]


@installed
def test_generators_weights_traces_and_logs_are_left_alone(linear, caplog):
    classifier, images, labels = example(linear, 10)
    state, trace = torch.get_rng_state(), sys.gettrace()
    handlers = list(logging.getLogger("auto-attack").handlers)
    autoattack(classifier, images, labels, eps=0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is trace
    assert logging.getLogger("auto-attack").handlers == handlers
    assert not caplog.records
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())


@installed
def test_its_warnings_are_returned(linear):
    # No pixel moves a logit: all gradients are zero.
    classifier, images, _ = example(linear, 10, num_images=1)
    classifier.backbone.model.weight.data.zero_()
    result = autoattack(classifier, images, torch.tensor([0]), eps=0.2, seed=0)
    assert any("zero gradient" in flag for flag in result.flags)


@installed
@pytest.mark.parametrize("eps", [0.0, -0.1, 8.0])
def test_an_eps_out_of_range_is_refused(eps, linear):
    with pytest.raises(ConfigError, match=r"in \(0, 1\], got"):
        autoattack(*example(linear, 10), eps=eps, seed=0)
