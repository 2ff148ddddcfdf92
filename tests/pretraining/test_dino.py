import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.order import Order
from smallvit.data.views import ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.models.cait import CaitBackbone
from smallvit.models.registry import create_backbone
from smallvit.models.swin import SwinBackbone
from smallvit.models.vit import VitBackbone
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective

TINY = {"num_prototypes": 8, "hidden_dim": 16, "bottleneck_dim": 4}


@pytest.fixture
def batch() -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    return ViewBatch(
        global_views=torch.randn(2, 3, 3, 16, 16, generator=generator),
        local_views=torch.randn(8, 3, 3, 8, 8, generator=generator),
        epoch=5.0,
        progress=0.5,
    )


@pytest.fixture
def objective(small_vit) -> DinoObjective:
    """Stochastic depth on, and a momentum teacher that is not its student."""
    objective = DinoObjective(small_vit(drop_path_rate=0.5), DinoConfig(**TINY))
    generator = torch.Generator().manual_seed(2)
    for module in (objective.ema_teacher, objective.ema_teacher_head):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    objective.criterion.center.normal_(std=0.1, generator=generator)
    return objective


def at_epoch(batch: ViewBatch, epoch: float) -> ViewBatch:
    return ViewBatch(
        global_views=batch.global_views,
        local_views=batch.local_views,
        epoch=epoch,
        progress=batch.progress,
    )


def step(objective: DinoObjective, batch: ViewBatch) -> None:
    optimizer = create_optimizer(objective, OptimConfig())
    runtime = open_runtime(RuntimeConfig(device="cpu"))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    train_step(objective, batch, optimizer, parameters, grad_clip_norm=3.0, runtime=runtime)


def test_constant_outputs_cost_log_of_the_number_of_prototypes(objective, batch):
    """Closed form: a student that says nothing costs log K, whatever its teacher says."""
    objective.student_head.last_layer.weight_g.data.zero_()
    torch.testing.assert_close(objective(batch).loss, torch.tensor(math.log(8)))


def test_loss_is_the_mean_over_eighteen_pairs(objective, batch):
    """Two loops over views; 0.055 is half-way from 0.04 to 0.07, at 5 of 10 epochs."""
    objective.student.eval()  # no stochastic depth, so that two passes agree
    centre = objective.criterion.center.clone().flatten()
    terms = []
    for i, seen in enumerate(batch.global_views):
        teacher = objective.ema_teacher_head(objective.ema_teacher.eval()(seen).pooled)
        target = ((teacher - centre) / 0.055).softmax(dim=-1)
        for j, view in enumerate([*batch.global_views, *batch.local_views]):
            if i != j:
                student = objective.student_head(objective.student(view).pooled)
                terms.append(-(target * (student / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean())
    assert len(terms) == 18
    torch.testing.assert_close(objective(batch).loss, torch.stack(terms).mean())


class Reference(nn.Module):
    """The same network under a head in plain modules: MLP, unit length, unit prototypes."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        linear = [copy.deepcopy(m) for m in head.layers if isinstance(m, nn.Linear)]
        self.mlp = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        self.prototypes = nn.Parameter(head.last_layer.weight_v.detach().clone())

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        x = F.normalize(self.mlp(self.backbone(view).pooled), dim=1)
        return x @ F.normalize(self.prototypes, dim=1).T


def reference_step(
    student: Reference, teacher: Reference, centre: torch.Tensor, batch: ViewBatch, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step with plain gradient descent, by the paper; returns the loss and the new centre."""
    temp = 0.04 + (0.07 - 0.04) * min(batch.epoch / 10, 1)
    with torch.no_grad():
        seen = [teacher(view) for view in batch.global_views]
    views = [*batch.global_views, *batch.local_views]
    terms = []
    for i, logits in enumerate(seen):
        target = torch.exp((logits - centre) / temp)
        target = target / target.sum(dim=1, keepdim=True)
        for j, view in enumerate(views):
            if j != i:
                x = student(view) / 0.1
                log_prob = x - x.exp().sum(dim=1, keepdim=True).log()
                terms.append(-(target * log_prob).sum(dim=1).mean())
    assert len(terms) == 18
    loss = sum(terms) / len(terms)
    student.zero_grad()
    loss.backward()
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * (batch.progress + 0.25)) + 1) / 2
    with torch.no_grad():
        for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
            frozen = mine is student.prototypes and batch.epoch < 1
            if mine.grad is not None and not frozen:
                mine -= lr * mine.grad * min(1.0, 0.05 / mine.grad.norm().item())
            theirs.copy_(momentum * theirs + (1 - momentum) * mine)
    return loss.detach(), 0.9 * centre + 0.1 * torch.cat(seen).mean(dim=0)


def test_four_steps_are_those_of_a_reference_by_hand(small_vit):
    """Loss, centre, both networks and their prototypes, which thaw at the third step.

    Momentum from 0.9, so that four steps move the momentum teacher; gradients are clipped by
    parameter to 0.05, which most of them exceed.
    """
    objective = DinoObjective(small_vit(), DinoConfig(**TINY, momentum=0.9))
    student = Reference(objective.student, objective.student_head)
    teacher = Reference(objective.ema_teacher, objective.ema_teacher_head)
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5, fused=True)
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    centre = torch.zeros(8)
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        batch = ViewBatch(
            global_views=torch.randn(2, 3, 3, 16, 16, generator=generator),
            local_views=torch.randn(8, 3, 3, 8, 8, generator=generator),
            epoch=number / 2,
            progress=number / 4,
        )
        clip = {"grad_clip_norm": 0.05, "grad_clip_mode": "parameter"}
        objective.train()
        metrics = train_step(objective, batch, optimizer, trained, runtime=runtime, **clip)
        objective.after_step((number + 1) / 4)
        loss, centre = reference_step(student, teacher, centre, batch, lr=0.5)
        torch.testing.assert_close(metrics["train/loss"], loss)
        torch.testing.assert_close(objective.criterion.center.flatten(), centre)
    for backbone, head, reference in (
        (objective.student, objective.student_head, student),
        (objective.ema_teacher, objective.ema_teacher_head, teacher),
    ):
        torch.testing.assert_close(backbone.state_dict(), reference.backbone.state_dict())
        linear = [m.state_dict() for m in head.layers if isinstance(m, nn.Linear)]
        assert len(linear) == 3
        for ours, theirs in zip(linear, reference.mlp[::2], strict=True):
            torch.testing.assert_close(ours, theirs.state_dict())
        torch.testing.assert_close(head.last_layer.weight_v.detach(), reference.prototypes.detach())


def test_global_views_alone_make_two_pairs(objective, batch):
    objective.student.eval()
    alone = ViewBatch(global_views=batch.global_views, local_views=None, epoch=20.0, progress=0.5)
    centre = objective.criterion.center.clone().flatten()
    first, second = batch.global_views
    terms = []
    for seen, view in ((first, second), (second, first)):
        teacher = objective.ema_teacher_head(objective.ema_teacher.eval()(seen).pooled)
        student = objective.student_head(objective.student(view).pooled)
        target = ((teacher - centre) / 0.07).softmax(dim=-1)
        terms.append(F.cross_entropy(student / 0.1, target))
    torch.testing.assert_close(objective(alone).loss, torch.stack(terms).mean())


def test_centre_moves_towards_the_teachers_mean_once_a_step(objective, batch):
    before = objective.criterion.center.clone()
    objective(batch)
    assert torch.equal(objective.criterion.center, before)
    objective.after_step(1.0)  # the momentum teacher stays
    views = batch.global_views.flatten(0, 1)
    mean = objective.ema_teacher_head(objective.ema_teacher(views).pooled).mean(dim=0)
    torch.testing.assert_close(objective.criterion.center, 0.9 * before + 0.1 * mean)


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.996), (0.5, 0.998), (1.0, 1.0)])
def test_after_step_is_the_exact_lerp(objective, progress, momentum):
    before = [p.clone() for p in objective.ema_teacher.parameters()]
    head_before = [p.clone() for p in objective.ema_teacher_head.parameters()]
    objective.after_step(progress)
    pairs = (
        (before, objective.student, objective.ema_teacher),
        (head_before, objective.student_head, objective.ema_teacher_head),
    )
    for old, student, teacher in pairs:
        for was, s, t in zip(old, student.parameters(), teacher.parameters(), strict=True):
            torch.testing.assert_close(t, momentum * was + (1 - momentum) * s.detach())


@pytest.mark.parametrize(
    ("epoch", "temp"), [(0.0, 0.04), (2.5, 0.0475), (10.0, 0.07), (300.0, 0.07)]
)
def test_teacher_temperature_rises_over_ten_epochs(objective, epoch, temp):
    assert objective.config.target_temp(epoch) == pytest.approx(temp)


def test_teacher_temperature_of_a_short_run_stops_on_its_way(small_vit):
    """A run of one epoch never reaches the end of a warm-up of ten: slope, not end, is kept."""
    config = DinoConfig(**TINY, warmup_teacher_temp_epochs=10.0)
    temps = [config.target_temp(e) for e in (0.0, 0.5, 1.0)]
    assert temps == pytest.approx([0.04, 0.0415, 0.043])


def test_without_warm_up_the_temperature_is_final_at_once(small_vit):
    config = DinoConfig(**TINY, warmup_teacher_temp_epochs=0.0)
    assert config.target_temp(0.0) == pytest.approx(0.07)


def test_gradient_reaches_the_student_and_not_the_teacher(objective, batch):
    objective.train()
    objective.student.eval()  # else stochastic depth may skip a block of all images
    objective(batch).loss.backward()
    trained = dict(objective.named_parameters())
    missing = [name for name, p in trained.items() if p.requires_grad and p.grad is None]
    # The class head is not part of the loss.
    assert [name for name in missing if ".head." not in name] == []
    assert all(p.grad is None for name, p in trained.items() if name.startswith("ema_teacher"))


def test_teacher_is_in_evaluation_mode(objective, batch):
    """The student's stochastic depth differs from pass to pass, the teacher's is off."""
    objective.train()
    objective(batch)
    assert objective.student.training
    assert not objective.ema_teacher.training
    seen = batch.global_views[0]
    first, second = (objective.ema_teacher(seen).patch for _ in range(2))
    assert torch.equal(first, second)


def test_the_papers_teacher_drops_blocks_while_it_trains_and_only_then(small_vit, batch):
    config = DinoConfig(**TINY, ema_teacher_mode="train")
    objective = DinoObjective(small_vit(drop_path_rate=0.5), config).train()
    objective(batch)
    assert objective.ema_teacher.training
    seen = batch.global_views.flatten(0, 1)
    first, second = (objective.ema_teacher(seen).patch for _ in range(2))
    assert not torch.equal(first, second)
    objective.eval()
    objective(batch)
    assert not objective.ema_teacher.training


def test_without_stochastic_depth_both_modes_of_the_teacher_cost_the_same(small_vit, batch):
    losses = [
        DinoObjective(small_vit(), DinoConfig(**TINY, ema_teacher_mode=mode)).train()(batch).loss
        for mode in ("eval", "train")
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


WIDTH = {"embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("gani_vit", VitBackbone, WIDTH),
        ("gani_cait", CaitBackbone, WIDTH),
        ("gani_swin", SwinBackbone, {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}),
    ],
)
def test_a_local_view_is_seen_as_by_a_network_made_for_its_size(name, kind, sizes):
    """Absolute positions are interpolated, not the first rows; Swin's are relative, and keep.

    The last stage of this Swin has one window in a local view and no shifted block: a network made
    for one window shifts none.
    """
    patch_size = 2 if name == "gani_swin" else 4
    sizes = sizes | {"num_classes": 0, "patch_size": patch_size}
    whole, small = (timm.create_model(name, img_size=side, **sizes) for side in (32, 16))
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = whole.state_dict()
    if "pos_embed" in state:
        prefix = state["pos_embed"][:, :-64]
        square = state["pos_embed"][:, -64:].reshape(1, 8, 8, 16).permute(0, 3, 1, 2)
        local = F.interpolate(square, size=(4, 4), mode="bicubic", antialias=True)
        state["pos_embed"] = torch.cat([prefix, local.flatten(2).mT], dim=1)
    small.load_state_dict(state)
    views = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = kind(whole).eval()(views)
    torch.testing.assert_close(tokens.patch, kind(small).eval()(views).patch)


def test_a_step_draws_nothing_from_the_global_generators_of_python_and_numpy(
    small_vit, monkeypatch
):
    """Views, loss and update: Python's functions are out of reach, NumPy's state stays.

    Python's own state cannot tell: the checks of types draw from it, with a function kept since
    their import.
    """

    def refuse(*args: object) -> None:
        raise AssertionError("drawn from Python's global generator")

    for name in ("random", "uniform", "randint", "randrange", "choice", "sample", "shuffle"):
        monkeypatch.setattr(random, name, refuse)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8)
    split = Split(images=pixels, labels=torch.zeros(12).long(), index=torch.arange(12))
    data = Dataset(
        name="made",
        class_names=("only",),
        image_size=16,
        splits={"train": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )
    losses = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()  # noqa: NPY002
        order = Order(12, 4, 0, torch.device("cpu"))
        views = ViewBatches(data, order, ViewsConfig(), total_steps=3)
        objective = DinoObjective(small_vit(drop_path_rate=0.5), DinoConfig(**TINY)).train()
        optimizer = create_optimizer(objective, OptimConfig())
        trained = [p for p in objective.parameters() if p.requires_grad]
        runtime = open_runtime(RuntimeConfig(device="cpu"))
        torch.manual_seed(5)
        metrics = train_step(
            objective, views(1), optimizer, trained, grad_clip_norm=3.0, runtime=runtime
        )
        losses.append(metrics["train/loss"])
        for was, now in zip(before, np.random.get_state(), strict=True):  # noqa: NPY002
            np.testing.assert_array_equal(was, now)
    assert torch.equal(*losses)


def test_teacher_starts_as_the_student(small_vit):
    objective = DinoObjective(small_vit(), DinoConfig(**TINY))
    for student, teacher in (
        (objective.student, objective.ema_teacher),
        (objective.student_head, objective.ema_teacher_head),
    ):
        expected = student.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in teacher.state_dict().items())
        assert not any(p.requires_grad for p in teacher.parameters())


def test_teachers_batch_norm_follows_the_student(batch):
    """With momentum 0 the teacher is its student, also in what batch norm has counted."""
    torch.manual_seed(0)
    backbone = create_backbone(
        ModelConfig(name="resnet8_small", width=4), num_classes=5, image_size=16
    )
    objective = DinoObjective(backbone, DinoConfig(**TINY, momentum=0.0))
    step(objective, batch)
    objective.after_step(0.0)
    objective.eval()
    seen = batch.global_views[0]
    torch.testing.assert_close(objective.ema_teacher(seen).patch, objective.student(seen).patch)


def test_prototypes_are_frozen_in_the_first_epoch_and_free_after(objective, batch):
    prototypes = objective.student_head.last_layer.weight_v
    others = objective.student_head.layers[0].weight
    before, others_before = prototypes.clone(), others.clone()
    step(objective, at_epoch(batch, 0.99))
    assert torch.equal(prototypes, before)
    assert not torch.equal(others, others_before)
    prototypes.requires_grad_(True)  # as when the optimizer is built
    step(objective, at_epoch(batch, 1.0))
    assert not torch.equal(prototypes, before)


def test_prototypes_stay_of_length_one(objective, batch):
    step(objective, at_epoch(batch, 1.0))
    lengths = objective.student_head.last_layer.weight_g
    assert torch.equal(lengths, torch.ones_like(lengths))


def test_entropy_of_the_teacher_is_logged(objective, batch):
    entropy = objective(batch).metrics["train/teacher_entropy"]
    assert 0 < entropy.item() < math.log(8)
    assert not entropy.requires_grad


def test_warm_up_above_the_final_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_teacher_temp \(0.08\) must not exceed"):
        DinoConfig(warmup_teacher_temp=0.08)
