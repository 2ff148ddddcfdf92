import dataclasses
from typing import Any

import pytest
import torch
from lightly.loss import LeJEPALoss

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import LeJepaConfig
from smallvit.pretraining.lejepa import LeJepaObjective

TINY: dict[str, Any] = {"num_directions": 32, "hidden_dim": 16, "output_dim": 6}
SHAPE: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
# Settings, side of the image.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny": (SHAPE, 16),
    "gani_cait": (SHAPE, 16),
    "gani_swin": ({"embed_dim": 24}, 32),
    "resnet8_small": ({"width": 4}, 16),
    "convnext_atto_small": ({}, 16),
}
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def make_batch(*, num_images: int = 4, side: int = 16, local: bool = True) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    small = torch.randn(3, num_images, 3, side // 2, side // 2, generator=generator)
    return ViewBatch(
        global_views=torch.randn(2, num_images, 3, side, side, generator=generator),
        local_views=small if local else None,
        epoch=0.0,
        progress=0.0,
    )


@pytest.fixture
def batch() -> ViewBatch:
    return make_batch()


@pytest.fixture
def objective(small_vit) -> LeJepaObjective:
    return LeJepaObjective(small_vit(), LeJepaConfig(**TINY, sigreg_weight=0.1))


def outputs(objective: LeJepaObjective, batch: ViewBatch) -> torch.Tensor:
    """Return what network and head make of all views, the large ones first: (V, B, O)."""
    views = [*batch.global_views, *(() if batch.local_views is None else batch.local_views)]
    pooled = torch.cat([objective.student(view).pooled for view in views])
    return objective.student_head(pooled).view(len(views), len(views[0]), -1)


def test_constant_outputs_cost_what_a_point_at_zero_does(objective, batch):
    """Closed form: no invariance is lost, and the characteristic function of a point is 1.

    B times the integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2) over [-3, 3]: four images, 0.5018.
    """
    last = objective.student_head.layers[-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    metrics = objective(batch).metrics
    t = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    normal = torch.exp(-(t**2) / 2)
    integral = torch.trapezoid((1 - normal) ** 2 * normal, t).float()
    torch.testing.assert_close(metrics["train/loss_sigreg"], 4 * integral, rtol=1e-3, atol=0.0)
    assert metrics["train/loss_invariance"] == 0


def test_loss_is_lightlys(objective, batch):
    """Reference, with the same directions."""
    reference = LeJEPALoss(lambda_param=0.1, sigreg_num_vectors=32)
    views = outputs(objective, batch)
    torch.manual_seed(5)
    expected = reference(local_proj=views[2:], global_proj=views[:2])
    torch.manual_seed(5)
    torch.testing.assert_close(objective(batch).loss, expected)


def test_invariance_is_the_mean_square_to_the_mean_of_the_large_views(objective, batch):
    """Loops over views and images."""
    views = outputs(objective, batch)
    squares = [
        (view[image] - (views[0, image] + views[1, image]) / 2).square().mean()
        for view in views
        for image in range(4)
    ]
    assert len(squares) == 20
    torch.testing.assert_close(
        objective(batch).metrics["train/loss_invariance"], torch.stack(squares).mean()
    )


def test_distribution_term_is_the_integral_along_each_direction(objective, batch):
    """Complex numbers and a rule of 17 points over half the line, for each view by itself."""
    torch.manual_seed(7)
    found = objective(batch).metrics["train/loss_sigreg"]
    torch.manual_seed(7)
    directions = torch.nn.functional.normalize(torch.randn(6, 32), dim=0)
    t = torch.linspace(0, 3, 17)
    normal = torch.exp(-(t**2) / 2)
    terms = []
    for view in outputs(objective, batch):
        along = (view @ directions)[..., None] * t  # (B, directions, points)
        gap = torch.exp(1j * along).mean(dim=0) - normal
        terms.append(2 * 4 * torch.trapezoid(gap.abs() ** 2 * normal, t, dim=-1).mean())
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_gaussian_outputs_cost_less_than_collapsed_or_stretched_ones(objective):
    normal = torch.randn(1, 512, 6, generator=torch.Generator().manual_seed(3))
    stretched = normal * torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 0.1])
    costs = []
    for views in (normal, stretched, 0.01 * normal):
        torch.manual_seed(0)
        costs.append(objective.sigreg(views).item())
    assert costs[0] < 0.1 * costs[1] < 0.1 * costs[2]


def test_loss_is_the_weighted_sum_of_its_terms(objective, batch):
    output = objective(batch)
    sigreg, invariance = (output.metrics[f"train/loss_{x}"] for x in ("sigreg", "invariance"))
    torch.testing.assert_close(output.loss, 0.1 * sigreg + 0.9 * invariance)


def test_directions_depend_on_the_seed_of_the_step_alone(objective, batch):
    """What the loop seeds before each step; a resumed run draws what an unbroken one would."""
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(objective(batch).loss.item())
    assert losses[0] == losses[2] != losses[1]


def test_gradient_reaches_network_and_head(objective, batch):
    objective(batch).loss.backward()
    missing = [name for name, p in objective.named_parameters() if p.grad is None]
    assert [name for name in missing if ".model.head." not in name] == []  # the class head


def test_large_views_alone_do(objective):
    """Then each is compared with the mean of both."""
    output = objective(make_batch(local=False))
    first, second = outputs(objective, make_batch(local=False))
    expected = ((first - second) / 2).square().mean()
    torch.testing.assert_close(output.metrics["train/loss_invariance"], expected)


def test_one_view_is_refused():
    with pytest.raises(ConfigError, match=r"method.views makes one: set .*num_global 2"):
        LeJepaConfig(views=ViewsConfig(num_global=1, num_local=0))
    LeJepaConfig(views=ViewsConfig(num_global=1, num_local=1))


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_takes_a_step_of_two_images(name):
    settings, side = MODELS[name]
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name=name, **settings), num_classes=0, image_size=side)
    objective = LeJepaObjective(backbone, LeJepaConfig(**TINY))
    before = [p.detach().clone() for p in objective.parameters()]
    parameters = list(objective.parameters())
    optimizer = create_optimizer(objective, OptimConfig())
    runtime = open_runtime(RuntimeConfig(device="cpu"))
    batch = make_batch(num_images=2, side=side)
    train_step(objective, batch, optimizer, parameters, grad_clip_norm=3.0, runtime=runtime)
    moved = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_bfloat16_leaves_the_terms_in_float32(objective, batch):
    """Outputs in bfloat16, then the same numbers as of a loss without autocast."""
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch).loss
        views = outputs(objective, batch).float()
    torch.manual_seed(5)
    reference = LeJEPALoss(lambda_param=0.1, sigreg_num_vectors=32)
    torch.testing.assert_close(loss, reference(local_proj=views[2:], global_proj=views[:2]))


def test_the_network_itself_is_exported(objective):
    assert objective.exported is objective.student
    assert objective.mask_draws == 0
    assert objective.max_entropy is None


def test_the_weight_divides_one_between_the_terms(objective, batch):
    objective.config = dataclasses.replace(objective.config, sigreg_weight=1.0)
    output = objective(batch)
    torch.testing.assert_close(output.loss, output.metrics["train/loss_sigreg"])
