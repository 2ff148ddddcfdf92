import dataclasses
import math
from typing import Any

import pytest
import torch
from lightly.loss import IBOTPatchLoss

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import IbotConfig
from smallvit.pretraining.ibot import IbotObjective, pick
from smallvit.pretraining.masks import as_mask, encode_masked, split_in_blocks

TINY: dict[str, Any] = {"num_prototypes": 8, "hidden_dim": 16, "bottleneck_dim": 4}
SHAPE: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
# Settings, side of the image.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny": (SHAPE, 16),
    "gani_cait": (SHAPE, 16),
    "gani_swin": ({"embed_dim": 24}, 32),
    "lvvit_tiny": (SHAPE, 16),
    "t2t_vit_7": (SHAPE, 16),
    "cct_7_3x1": (SHAPE, 16),
    "resnet8_small": ({"width": 4}, 16),
    "convnext_atto_small": ({}, 16),
}
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def make_batch(draws: int, *, num_images: int = 3, side: int = 16, local: bool = True) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    sample = torch.arange(num_images)
    small = torch.randn(4, num_images, 3, side // 2, side // 2, generator=generator)
    return ViewBatch(
        global_views=torch.randn(2, num_images, 3, side, side, generator=generator),
        local_views=small if local else None,
        epoch=5.0,
        progress=0.5,
        mask_draws=rng.uniform(0, "mask", torch.zeros_like(sample), sample, draws),
    )


def build(backbone, **settings: Any) -> IbotObjective:
    """Build with a momentum teacher that is not its student, and centres that are not zero."""
    objective = IbotObjective(backbone, IbotConfig(**TINY, **settings), image_size=16)
    generator = torch.Generator().manual_seed(2)
    for module in (objective.ema_teacher, objective.ema_teacher_head):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    objective.criterion.center.normal_(std=0.1, generator=generator)
    objective.patch_criterion.center.value.normal_(std=0.1, generator=generator)
    objective.mask_token.data.normal_(generator=generator)
    return objective


@pytest.fixture
def objective(small_vit) -> IbotObjective:
    return build(small_vit())


@pytest.fixture
def batch(objective) -> ViewBatch:
    return make_batch(objective.mask_draws)


def hidden_tokens(objective: IbotObjective, batch: ViewBatch) -> torch.Tensor:
    assert batch.mask_draws is not None
    return split_in_blocks(batch.mask_draws, objective.grid, objective.hidden)[0]


def masked(objective: IbotObjective, batch: ViewBatch) -> list[torch.Tensor]:
    """Return the mask of each global view: images 0 and 2 hide in the first, 1 in the second."""
    mask = as_mask(hidden_tokens(objective, batch), objective.grid)
    first = torch.tensor([True, False, True])[:, None, None]
    return [mask & first, mask & ~first]


def step(objective: IbotObjective, batch: ViewBatch) -> None:
    optimizer = create_optimizer(objective, OptimConfig())
    runtime = open_runtime(RuntimeConfig(device="cpu"))
    parameters = [p for p in objective.parameters() if p.requires_grad]
    train_step(objective, batch, optimizer, parameters, grad_clip_norm=3.0, runtime=runtime)


def test_constant_outputs_cost_log_of_the_number_of_prototypes(objective, batch):
    """Closed form: log K for images, and half for tokens, of which half the views hide none."""
    objective.student_head.last_layer.weight_g.data.zero_()
    output = objective(batch)
    torch.testing.assert_close(output.loss, torch.tensor(1.5 * math.log(8)))
    torch.testing.assert_close(output.metrics["train/loss_cls"], torch.tensor(math.log(8)))
    torch.testing.assert_close(output.metrics["train/loss_patch"], torch.tensor(math.log(8) / 2))


def test_image_term_is_the_mean_over_ten_pairs(objective, batch):
    """Two loops; the student sees masked views, the teacher whole ones; 0.055 is half-way."""
    centre = objective.criterion.center.clone().flatten()
    masks = masked(objective, batch)
    student = [
        encode_masked(objective.student, view, mask, objective.mask_token).pooled
        for view, mask in zip(batch.global_views, masks, strict=True)
    ]
    student += [objective.student(view).pooled for view in batch.local_views]
    terms = []
    for i, seen in enumerate(batch.global_views):
        teacher = objective.ema_teacher_head(objective.ema_teacher(seen).pooled)
        target = ((teacher - centre) / 0.055).softmax(dim=-1)
        for j, features in enumerate(student):
            if i != j:
                log_prob = (objective.student_head(features) / 0.1).log_softmax(dim=-1)
                terms.append(-(target * log_prob).sum(dim=-1).mean())
    assert len(terms) == 10
    torch.testing.assert_close(
        objective(batch).metrics["train/loss_cls"], torch.stack(terms).mean()
    )


def test_patch_term_is_the_mean_over_views_images_and_hidden_tokens(objective, batch):
    """Loops over views, images and tokens; a view that hides none counts as zero."""
    centre = objective.patch_criterion.center.value.clone().flatten()
    total = torch.zeros(())
    for view, mask in zip(batch.global_views, masked(objective, batch), strict=True):
        seen = objective.ema_teacher_head(objective.ema_teacher(view).patch.flatten(0, 1))
        tokens = encode_masked(objective.student, view, mask, objective.mask_token).patch
        guess = objective.student_head(tokens.flatten(0, 1))
        target = ((seen - centre) / 0.055).softmax(dim=-1).view(3, 16, 8)
        cost = -(target * (guess / 0.1).log_softmax(dim=-1).view(3, 16, 8)).sum(dim=-1)
        for image, hidden in zip(cost, mask.flatten(1), strict=True):
            if hidden.any():
                total = total + image[hidden].mean() / (2 * 3)
    torch.testing.assert_close(objective(batch).metrics["train/loss_patch"], total)


def test_patch_term_is_lightlys_ibot_loss(objective, batch):
    """Reference: its tokens are those of all views where their masks are true, in that order."""
    masks = torch.cat(masked(objective, batch))
    views = batch.global_views.flatten(0, 1)
    seen = objective.ema_teacher(views).patch[masks.flatten(1)]
    tokens = encode_masked(objective.student, views, masks, objective.mask_token)
    reference = IBOTPatchLoss(output_dim=8)
    reference.load_state_dict(objective.patch_criterion.state_dict())
    expected = reference(
        objective.ema_teacher_head(seen),
        objective.student_head(tokens.patch[masks.flatten(1)]),
        masks,
        teacher_temp=0.055,
    )
    torch.testing.assert_close(objective(batch).metrics["train/loss_patch"], expected)
    objective.after_step(1.0)
    torch.testing.assert_close(objective.patch_criterion.center.value, reference.center.value)


def test_loss_is_the_weighted_sum_of_its_terms(small_vit):
    objective = build(small_vit(), patch_weight=0.7, koleo_weight=0.2)
    output = objective(make_batch(objective.mask_draws))
    cls, patch, koleo = (output.metrics[f"train/loss_{x}"] for x in ("cls", "patch", "koleo"))
    torch.testing.assert_close(output.loss, cls + 0.7 * patch + 0.2 * koleo)


def test_koleo_is_the_log_distance_to_the_nearest_image_of_the_same_view(small_vit):
    objective = build(small_vit(), koleo_weight=0.1)
    batch = make_batch(objective.mask_draws)
    expected = torch.zeros(())
    for view, mask in zip(batch.global_views, masked(objective, batch), strict=True):
        tokens = encode_masked(objective.student, view, mask, objective.mask_token)
        features = torch.nn.functional.normalize(tokens.pooled, dim=-1)
        distances = torch.cdist(features, features) + 9 * torch.eye(3)
        expected = expected - distances.amin(dim=1).log().mean()
    found = objective(batch).metrics["train/loss_koleo"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_its_weight_koleo_is_not_computed(objective, batch):
    assert "train/loss_koleo" not in objective(batch).metrics


def test_picked_tokens_are_those_of_the_view_with_the_mask():
    patch = torch.arange(2 * 2 * 3).view(4, 3, 1).float()  # two views of two images
    picked = pick(patch, torch.tensor([[0, 2], [1, 2]]), torch.tensor([False, True]))
    assert picked[..., 0].tolist() == [[0, 2], [10, 11]]


def test_centres_move_towards_the_teachers_means(objective, batch):
    before = objective.criterion.center.clone(), objective.patch_criterion.center.value.clone()
    objective(batch)
    objective.after_step(1.0)  # the momentum teacher stays
    masks = torch.cat(masked(objective, batch)).flatten(1)
    tokens = objective.ema_teacher(batch.global_views.flatten(0, 1))
    means = [
        objective.ema_teacher_head(x).mean(dim=0) for x in (tokens.pooled, tokens.patch[masks])
    ]
    after = objective.criterion.center, objective.patch_criterion.center.value
    for old, mean, new in zip(before, means, after, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * mean)


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.996), (0.5, 0.998), (1.0, 1.0)])
def test_after_step_is_the_exact_lerp(objective, progress, momentum):
    pairs = [
        (t.clone(), s, t)
        for copy, module in (
            (objective.ema_teacher, objective.student),
            (objective.ema_teacher_head, objective.student_head),
        )
        for s, t in zip(module.parameters(), copy.parameters(), strict=True)
    ]
    objective.after_step(progress)
    for was, student, teacher in pairs:
        torch.testing.assert_close(teacher, momentum * was + (1 - momentum) * student.detach())


def test_gradient_reaches_student_head_and_mask_token_and_not_the_teacher(objective, batch):
    objective(batch).loss.backward()
    named = dict(objective.named_parameters())
    missing = [name for name, p in named.items() if p.requires_grad and p.grad is None]
    assert [name for name in missing if ".model.head." not in name] == []  # the class head
    assert objective.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in named.items() if name.startswith("ema_teacher"))


def test_gradient_of_the_patch_term_reaches_the_student(small_vit):
    """A large weight makes a large gradient, beside that of the image term."""
    objective = build(small_vit(), patch_weight=1e6)
    objective(make_batch(objective.mask_draws)).loss.backward()
    strong = objective.student.model.blocks[0].mlp.fc1.weight.grad.clone()
    objective.zero_grad()
    objective.config = dataclasses.replace(objective.config, patch_weight=0.0)
    objective(make_batch(objective.mask_draws)).loss.backward()
    assert strong.norm() > 100 * objective.student.model.blocks[0].mlp.fc1.weight.grad.norm()


def test_teacher_is_in_evaluation_mode_and_starts_as_the_student(small_vit):
    objective = IbotObjective(small_vit(drop_path_rate=0.5), IbotConfig(**TINY), image_size=16)
    expected = objective.student.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in objective.ema_teacher.state_dict().items())
    objective.train()
    objective(make_batch(objective.mask_draws))
    assert objective.student.training
    assert not objective.ema_teacher.training
    assert objective.exported is objective.ema_teacher


def test_prototypes_are_frozen_in_the_first_epoch_and_free_after(objective, batch):
    prototypes = objective.student_head.last_layer.weight_v
    before = prototypes.clone()
    step(objective, dataclasses.replace(batch, epoch=0.99))
    assert torch.equal(prototypes, before)
    prototypes.requires_grad_(True)  # as when the optimizer is built
    step(objective, dataclasses.replace(batch, epoch=1.0))
    assert not torch.equal(prototypes, before)


@pytest.mark.parametrize(("epoch", "temp"), [(0.0, 0.04), (2.5, 0.0475), (300.0, 0.07)])
def test_teacher_temperature_rises_over_ten_epochs(objective, epoch, temp):
    assert objective.config.target_temp(epoch) == pytest.approx(temp)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("local", [True, False])
def test_every_architecture_takes_a_step_of_two_images(name, local):
    settings, side = MODELS[name]
    torch.manual_seed(0)
    backbone = create_backbone(ModelConfig(name=name, **settings), num_classes=0, image_size=side)
    objective = IbotObjective(backbone, IbotConfig(**TINY, koleo_weight=0.1), image_size=side)
    batch = make_batch(objective.mask_draws, num_images=2, side=side, local=local)
    before = [p.detach().clone() for p in objective.student.parameters()]
    step(objective, batch)
    objective.after_step(0.5)
    after = objective.student.parameters()
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert objective.mask_token.abs().sum() > 0


def test_bfloat16_costs_about_the_same(objective, batch):
    """Networks are in bfloat16 and the losses in float32."""
    expected = objective(batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.0)


def test_the_checkpoint_holds_centres_and_mask_token(objective):
    keys = objective.state_dict().keys()
    assert {"mask_token", "criterion.center", "patch_criterion.center.center"} <= keys


def test_entropy_of_the_teacher_is_logged(objective, batch):
    entropy = objective(batch).metrics["train/teacher_entropy"]
    assert 0 < entropy.item() < objective.max_entropy == math.log(8)
    assert not entropy.requires_grad


def test_one_large_view_is_refused():
    with pytest.raises(ConfigError, match=r"method.views.num_global \(1\) must be 2: ibot hides"):
        IbotConfig(views=ViewsConfig(num_global=1))


def test_warm_up_above_the_final_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_teacher_temp \(0.08\) must not exceed"):
        IbotConfig(warmup_teacher_temp=0.08)
