import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.evaluate.attacks import fgsm, pgd, robust_correct
from smallvit.evaluate.classify import predicted_classes
from smallvit.evaluate.pixel_classifier import PixelClassifier
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone, Tokens

SIZE = 4
PIXELS = 3 * SIZE**2


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mid_images(num: int) -> torch.Tensor:
    """Colours in [0.4, 0.6]: moved by 0.1 they are not cut off."""
    generator = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(num, 3, SIZE, SIZE, generator=generator)


@pytest.fixture
def two_classes(linear):
    """Two classes told apart by a plane through the middle of the images."""
    normal = randn(PIXELS)
    return linear(torch.stack([torch.zeros(PIXELS), normal - normal.mean()]))


def margins(classifier: PixelClassifier, images: torch.Tensor) -> torch.Tensor:
    """Distance in L-infinity to the plane: the logits' difference over the L1 norm of its slope."""
    with torch.no_grad():
        difference = classifier(images).diff(dim=1)[:, 0]
    return difference.abs() / classifier.backbone.model.weight.diff(dim=0).abs().sum()


def test_fgsm_moves_every_colour_by_eps_along_the_slope(two_classes):
    images = mid_images(3)
    normal = two_classes.backbone.model.weight[1].detach().view(3, SIZE, SIZE)
    moved = fgsm(two_classes, images, torch.tensor([0, 1, 1]), eps=0.05)
    signs = torch.tensor([1.0, -1.0, -1.0])[:, None, None, None]
    torch.testing.assert_close(moved, images + 0.05 * signs * normal.sign())


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_on_a_linear_network_just_the_images_within_eps_of_the_plane_fall(attack, two_classes):
    images = mid_images(40)
    with torch.no_grad():
        labels = predicted_classes(two_classes(images))
    distance = margins(two_classes, images)
    eps = [distance.quantile(q).item() for q in (0.25, 0.75)]
    assert max(eps) < 0.1
    correct = robust_correct(two_classes, [(images, labels)], attack=attack, eps=eps, steps=8)
    for value in eps:
        clear = (distance - value).abs() > 1e-4
        assert torch.equal(correct[value][clear], (distance > value)[clear])


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_eps_0_is_the_clean_accuracy(attack, small_vit):
    classifier = PixelClassifier(small_vit(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images, labels = randn(12, 3, 16, 16).sigmoid(), torch.arange(12) % 5
    with torch.no_grad():
        clean = predicted_classes(classifier(images)) == labels
    correct = robust_correct(classifier, [(images, labels)], attack=attack, eps=[0.0])
    assert torch.equal(correct[0.0], clean)
    assert torch.equal(pgd(classifier, images, labels, eps=0.0, indices=torch.arange(12)), images)
    assert torch.equal(fgsm(classifier, images, labels, eps=0.0), images)


@pytest.mark.parametrize("eps", [0.03, 0.5])
def test_changes_stay_within_eps_and_within_the_colours(eps, small_vit):
    classifier = PixelClassifier(small_vit(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images, labels = randn(6, 3, 16, 16).sigmoid(), torch.arange(6) % 5
    moved = pgd(classifier, images, labels, eps=eps, steps=3, restarts=2, indices=torch.arange(6))
    for changed in (moved, fgsm(classifier, images, labels, eps=eps)):
        assert changed.amin() >= 0
        assert changed.amax() <= 1
        assert (changed - images).abs().amax() <= eps + 1e-6
        assert not changed.requires_grad


def test_pgd_keeps_what_fell_and_more_eps_fells_no_fewer(small_vit):
    classifier = PixelClassifier(small_vit(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images = randn(24, 3, 16, 16).sigmoid()
    with torch.no_grad():
        labels = predicted_classes(classifier(images))
    eps = [8 / 255, 0.0, 1 / 255, 2 / 255]
    correct = robust_correct(classifier, images_and(images, labels), attack="pgd", eps=eps, steps=4)
    assert list(correct) == eps
    stacked = torch.stack([correct[value] for value in sorted(eps)])
    assert not (stacked[1:] & ~stacked[:-1]).any()
    assert correct[0.0].all()
    assert not correct[8 / 255].all()


def images_and(images: torch.Tensor, labels: torch.Tensor):
    return list(zip(images.split(10), labels.split(10), strict=True))


class WaveBackbone(AbstractBackbone):
    """Two classes in stripes of width 0.1 of the mean colour: as in a network that misleads."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.embed_dim, self.patch_size = 1, (SIZE, SIZE)

    def embed(self, images):
        return images.mean(dim=(1, 2, 3))[:, None, None, None]

    def encode(self, patches):
        return Tokens(patch=patches.flatten(1, 2), cls=None, grid=(1, 1))

    def classify(self, pooled):
        wave = (2 * math.pi * pooled / 0.2).sin()
        return torch.cat([torch.zeros_like(wave), wave], dim=-1)


def test_fgsm_is_scored_at_each_eps_by_itself_and_pgd_is_not():
    # From 0.52 the loss of class 0 rises downwards: at 0.42 lies class 1, at 0.32 class 0 again.
    classifier = PixelClassifier(WaveBackbone(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images = torch.full((1, 3, SIZE, SIZE), 0.52)
    with torch.no_grad():
        labels = predicted_classes(classifier(images))
    scored = {
        attack: robust_correct(classifier, [(images, labels)], attack=attack, eps=[0.1, 0.2])
        for attack in ("fgsm", "pgd")
    }
    assert [scored["fgsm"][eps].item() for eps in (0.1, 0.2)] == [False, True]
    assert [scored["pgd"][eps].item() for eps in (0.1, 0.2)] == [False, False]


def test_every_step_of_pgd_counts_not_the_last_alone():
    # The first step, to about 0.43, falls into the other stripe; the second jumps back out of it.
    classifier = PixelClassifier(WaveBackbone(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    moved = pgd(
        classifier,
        torch.full((1, 3, SIZE, SIZE), 0.52),
        torch.tensor([0]),
        eps=0.2,
        steps=2,
        step_size=0.1,
        indices=torch.tensor([0]),
    )
    assert moved.mean() == pytest.approx(0.43, abs=0.02)
    with torch.no_grad():
        assert predicted_classes(classifier(moved)).item() == 1


def test_an_image_that_fell_at_one_step_stays_fallen_at_the_next():
    # Means of the steps from 0.54: 0.53, 0.19, 0.61 (the other class) and 0.94 (its own again).
    classifier = PixelClassifier(WaveBackbone(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    batch = torch.full((1, 3, SIZE, SIZE), 0.54), torch.tensor([0])
    correct = robust_correct(classifier, [batch], attack="pgd", eps=[0.5], steps=3)
    assert not correct[0.5].any()


def test_weights_get_no_gradient_and_stay_trainable(small_vit):
    backbone = small_vit()
    backbone.model.head.bias.requires_grad_(False)
    classifier = PixelClassifier(backbone, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    before = [parameter.clone() for parameter in backbone.parameters()]
    images, labels = randn(2, 3, 16, 16).sigmoid(), torch.tensor([0, 1])
    for attack in ("fgsm", "pgd"):
        robust_correct(classifier, [(images, labels)], attack=attack, eps=[0.1], steps=2)
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert [parameter.requires_grad for parameter in backbone.parameters()] == trained
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet8_small", {"width": 8}),
        ("gani_swin", {"embed_dim": 24}),
        ("gani_cait", {"embed_dim": 24, "depth": 1, "num_heads": 2}),
        ("lvvit_tiny", {"embed_dim": 24, "depth": 1, "num_heads": 2}),
    ],
)
def test_a_network_with_any_layers_is_attacked_in_evaluation_mode(name, settings):
    torch.manual_seed(0)
    model = ModelConfig(name=name, **settings)
    backbone = create_backbone(model, num_classes=5, image_size=32)
    classifier = PixelClassifier(backbone, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    backbone.train()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = randn(4, 3, 32, 32).sigmoid()
    labels = torch.arange(4)
    scores = [
        robust_correct(classifier, [(images, labels)], attack="pgd", eps=[0.05], steps=2)[0.05]
        for _ in range(2)
    ]
    moved = fgsm(classifier, images, labels, eps=0.05)
    assert torch.equal(*scores)  # no dropout
    assert (moved != images).any(dim=(1, 2, 3)).all()
    assert backbone.training
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_a_sure_network_does_not_hide_its_gradient(two_classes, linear):
    # In float32 the probability of the right class is 1 and its loss 0: no slope to climb.
    images = mid_images(20)
    with torch.no_grad():
        labels = predicted_classes(two_classes(images))
    eps = 2 * margins(two_classes, images).amax().item()
    sure = linear(two_classes.backbone.model.weight.detach(), scale=500.0)
    with torch.no_grad():
        assert sure(images).diff(dim=1).abs().median() > 50
    for attack in ("fgsm", "pgd"):
        correct = robust_correct(sure, [(images, labels)], attack=attack, eps=[eps])
        assert not correct[eps].any()


def test_what_is_climbed_has_the_direction_of_the_cross_entropy(linear):
    classifier = linear(randn(7, PIXELS))
    images, labels = mid_images(6), torch.arange(6)
    point = images.clone().requires_grad_()
    F.cross_entropy(classifier(point).double(), labels).backward()
    moved = fgsm(classifier, images, labels, eps=0.01)
    torch.testing.assert_close(moved, images + 0.01 * point.grad.sign())


def test_random_places_depend_on_the_image_and_not_on_its_batch(two_classes):
    images, labels = mid_images(6), torch.tensor([0, 1] * 3)
    settings = {"eps": 1e-4, "steps": 1, "step_size": 1e-9}
    together = pgd(two_classes, images, labels, indices=torch.arange(6), **settings)
    alone = pgd(two_classes, images[4:], labels[4:], indices=torch.tensor([4, 5]), **settings)
    torch.testing.assert_close(together[4:], alone, rtol=0, atol=1e-7)


def test_another_seed_starts_elsewhere(two_classes):
    images = mid_images(2)
    with torch.no_grad():
        labels = predicted_classes(two_classes(images))
    moved = [
        pgd(
            two_classes,
            images,
            labels,
            eps=1e-3,
            steps=1,
            step_size=1e-9,
            restarts=8,
            seed=seed,
            indices=torch.arange(2),
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def test_more_restarts_leave_an_image_no_better_off(two_classes):
    images = mid_images(8)
    with torch.no_grad():
        labels = predicted_classes(two_classes(images))

    def losses(restarts: int) -> torch.Tensor:
        moved = pgd(
            two_classes,
            images,
            labels,
            eps=1e-3,
            steps=1,
            step_size=1e-9,
            restarts=restarts,
            indices=torch.arange(8),
        )
        with torch.no_grad():
            return F.cross_entropy(two_classes(moved), labels, reduction="none")

    one, many = losses(1), losses(8)
    assert (many >= one).all()
    assert (many > one).any()


def test_a_misclassified_image_counts_as_fooled_and_is_left_alone(two_classes):
    images = mid_images(4)
    with torch.no_grad():
        wrong = 1 - predicted_classes(two_classes(images))
    correct = robust_correct(two_classes, [(images, wrong)], attack="fgsm", eps=[0.0, 0.3])
    assert not correct[0.0].any()
    assert not correct[0.3].any()
    assert torch.equal(pgd(two_classes, images, wrong, eps=0.3, indices=torch.arange(4)), images)


def test_attacks_run_in_float32_whatever_surrounds_them(small_vit):
    classifier = PixelClassifier(small_vit(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images, labels = randn(3, 3, 16, 16).sigmoid(), torch.arange(3)
    settings = {"eps": 0.02, "steps": 2, "indices": torch.arange(3)}
    plain = pgd(classifier, images, labels, **settings), fgsm(classifier, images, labels, eps=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = (
            pgd(classifier, images, labels, **settings),
            fgsm(classifier, images, labels, eps=0.02),
        )
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_the_host_waits_a_few_times_a_restart_and_not_once_a_step(two_classes):
    class Waits(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            self.count += name in ("nonzero", "_local_scalar_dense", "is_nonzero", "equal")
            return func(*args, **(kwargs or {}))

    images = mid_images(4)
    with torch.no_grad():
        labels = predicted_classes(two_classes(images))
    settings = {"eps": 1e-6, "restarts": 2, "indices": torch.arange(4)}
    with Waits() as waits:
        pgd(two_classes, images, labels, steps=33, **settings)
    assert waits.count == 2 * 7  # before steps 0, 1, 2, 4, 8, 16 and 32


@pytest.mark.parametrize(
    ("eps", "message"),
    [(8, r"in \[0, 1\], got 8: .* give 8 / 255"), (-0.1, r"got -0\.1"), (math.nan, "got nan")],
)
def test_an_eps_out_of_range_is_refused(eps, message, two_classes):
    images, labels = mid_images(1), torch.tensor([0])
    for attack in ("fgsm", "pgd"):
        with pytest.raises(ConfigError, match=message):
            robust_correct(two_classes, [(images, labels)], attack=attack, eps=[0.1, eps])
    with pytest.raises(ConfigError, match=message):
        fgsm(two_classes, images, labels, eps=eps)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps of PGD must be at least 1, got 0"),
        ({"restarts": 0}, "restarts of PGD must be at least 1, got 0"),
        ({"step_size": 0.0}, r"step_size of PGD must be in \(0, 1\], got 0"),
    ],
)
def test_a_setting_of_pgd_out_of_range_is_refused(setting, message, two_classes):
    with pytest.raises(ConfigError, match=message):
        pgd(
            two_classes,
            mid_images(1),
            torch.tensor([0]),
            eps=0.1,
            indices=torch.tensor([0]),
            **setting,
        )
