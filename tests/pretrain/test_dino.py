import math

import pytest
import torch
import torch.nn.functional as F

from smallvit.core.errors import ConfigError
from smallvit.data.batches import ViewBatch
from smallvit.engine.optim import OptimConfig, create_optimizer
from smallvit.engine.runtime import RuntimeConfig, open_runtime
from smallvit.engine.step import train_step
from smallvit.models.registry import ModelConfig, create_backbone
from smallvit.pretrain.dino import DinoConfig, DinoObjective

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


def test_centre_moves_towards_the_teachers_mean(objective, batch):
    before = objective.criterion.center.clone()
    objective(batch)
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
    assert objective.teacher_temp(epoch) == pytest.approx(temp)


def test_teacher_temperature_of_a_short_run_stops_on_its_way(small_vit):
    """A run of one epoch never reaches the end of a warm-up of ten: slope, not end, is kept."""
    config = DinoConfig(**TINY, warmup_teacher_temp_epochs=10.0)
    temps = [DinoObjective(small_vit(), config).teacher_temp(e) for e in (0.0, 0.5, 1.0)]
    assert temps == pytest.approx([0.04, 0.0415, 0.043])


def test_without_warm_up_the_temperature_is_final_at_once(small_vit):
    config = DinoConfig(**TINY, warmup_teacher_temp_epochs=0.0)
    assert DinoObjective(small_vit(), config).teacher_temp(0.0) == pytest.approx(0.07)


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
