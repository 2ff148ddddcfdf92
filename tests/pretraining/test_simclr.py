import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.engine.config import OptimConfig
from smallvit.engine.optim import create_optimizer
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import SimClrConfig
from smallvit.pretraining.simclr import SimClrObjective

TINY = {"hidden_dim": 16, "output_dim": 8}


def as_batch(views: Tensor) -> ViewBatch:
    return ViewBatch(global_views=views, local_views=None, epoch=1.0, progress=0.5)


@pytest.fixture
def views() -> Tensor:
    return torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def objective(small_vit) -> SimClrObjective:
    return SimClrObjective(small_vit(num_classes=0), SimClrConfig(**TINY))


class Fixed(torch.nn.Module):
    """A head that returns the same vectors whatever it sees."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, pooled: Tensor) -> Tensor:
        return self.vectors + 0 * pooled.sum()


def cost_of(objective: SimClrObjective, vectors: Tensor) -> Tensor:
    """Return the loss where the head gives these vectors, view by view."""
    objective.student_head = Fixed(vectors)
    images = len(vectors) // 2
    return objective(as_batch(torch.zeros(2, images, 3, 16, 16))).loss


def test_equal_vectors_cost_log_of_all_other_views(objective):
    """Closed form: one right among the 2 B - 1 other views, all alike."""
    loss = cost_of(objective, torch.ones(10, 4))
    torch.testing.assert_close(loss, torch.tensor(math.log(9)))


def test_orthogonal_images_cost_what_their_temperature_leaves(objective):
    """Closed form: cosine 1 with the other view and 0 with 2 B - 2 views of other images."""
    loss = cost_of(objective, torch.eye(5).repeat(2, 1))
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + 8 * math.exp(-1 / 0.5))))


def test_loss_is_that_of_loops_over_views(objective, views):
    """Equation 1 of the paper, written out."""
    z = objective.student_head(objective.student(views.flatten(0, 1)).pooled)
    total = 0.0
    for i in range(6):
        cosines = {
            j: torch.cosine_similarity(z[i], z[j], dim=0).item() / 0.5 for j in range(6) if j != i
        }
        total += math.log(sum(math.exp(c) for c in cosines.values())) - cosines[(i + 3) % 6]
    assert objective(as_batch(views)).loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_loss_does_not_depend_on_the_order_of_images_or_views(objective, views):
    loss = objective(as_batch(views)).loss
    order = torch.tensor([2, 0, 1])
    for other in (views[:, order], views.flip(0)):
        torch.testing.assert_close(objective(as_batch(other)).loss, loss, rtol=1e-4, atol=1e-5)
    mismatched = torch.stack([views[0], views[1, order]])
    assert not torch.isclose(objective(as_batch(mismatched)).loss, loss, rtol=1e-3)


def test_loss_falls_when_views_of_an_image_are_alike(objective, views):
    alike = torch.stack([views[0], views[0]])
    assert objective(as_batch(alike)).loss < objective(as_batch(views)).loss


def test_gradient_reaches_every_trained_parameter(objective, views):
    objective(as_batch(views)).loss.backward()
    named = dict(objective.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad and p.grad is None] == []
    assert objective.exported is objective.student


def test_last_batch_norm_has_a_scale_and_no_shift(objective, views):
    last = objective.student_head.layers[-1]
    assert last.weight.requires_grad
    optimizer = create_optimizer(objective, OptimConfig(lr=0.01))
    objective(as_batch(views)).loss.backward()
    optimizer.step()
    assert torch.equal(last.bias, torch.zeros(8))
    assert not torch.equal(last.weight, torch.ones(8))


def test_loss_keeps_float32_under_autocast(objective):
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    expected = cost_of(objective, vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cost_of(objective, vectors), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gani_swin", {"embed_dim": 24, "window_size": 2, "patch_size": 1}),
        ("gani_cait", {"embed_dim": 16, "depth": 1, "num_heads": 2}),
        ("resnet8_small", {"width": 4}),
    ],
)
def test_every_architecture_takes_a_step_on_two_images_in_bfloat16(
    name: str, settings: dict[str, Any], views: Tensor
):
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name=name, **settings), num_classes=0, image_size=16)
    objective = SimClrObjective(backbone, SimClrConfig(**TINY)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(as_batch(views[:, :2])).loss
    loss.backward()
    assert loss.dtype == torch.float32
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_views_are_those_of_the_authors_for_small_images():
    views = SimClrConfig().views
    assert (views.num_global, views.num_local) == (2, 0)
    assert views.global_scale == (0.08, 1.0)
    assert views.color_jitter == (0.4, 0.4, 0.4, 0.1)
    assert not any((*views.blur_prob, views.solarize_prob))


def test_other_views_are_refused():
    with pytest.raises(ConfigError, match=r"num_local \(8\) must be 0: simclr compares two"):
        SimClrConfig(views=ViewsConfig())
