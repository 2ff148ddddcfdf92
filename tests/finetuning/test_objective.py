import dataclasses

import pytest
import torch
import torch.nn.functional as F

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import LabeledBatch, TokenBox
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.mix_token import mix_tokens
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.finetuning.online import OnlineTeacher
from smallvit.finetuning.token_labeling import (
    TokenLabelingLoss,
    soft_cross_entropy,
    token_labels_from,
)
from smallvit.models.registry import create_backbone
from smallvit.teachers.teacher import Teacher

BOX = TokenBox(top=1, left=2, bottom=3, right=4, grid=(4, 4))


def make_batch(size: int = 3, *, maps: bool = True, box: TokenBox | None = None) -> LabeledBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 16, 16, generator=generator)
    score_maps = torch.randn(size, 5, 4, 4, generator=generator).softmax(dim=1)
    return LabeledBatch(
        images=images,
        labels=torch.arange(size) % 5,
        score_maps=score_maps if maps else None,
        mix_box=box,
    )


def create(
    backbone, token_weight: float | None = None, smoothing: float = 0.1, teacher=None, **settings
):
    torch.manual_seed(3)
    token_label = None
    if token_weight is not None:
        token_label = TokenLabelConfig(enabled=True, token_weight=token_weight, **settings)
    return FinetuneObjective(
        backbone,
        num_classes=5,
        config=SupervisedConfig(label_smoothing=smoothing),
        token_label=token_label,
        teacher=teacher,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_token_labels_it_is_torchs_cross_entropy(small_vit, smoothing):
    objective, batch = create(small_vit().eval(), smoothing=smoothing), make_batch(maps=False)
    logits = objective.student.model(batch.images)
    expected = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    torch.testing.assert_close(objective(batch).loss, expected)


def test_token_labeling_reads_patch_tokens_and_score_maps(small_vit):
    objective, batch = create(small_vit().eval(), 0.5, smoothing=0.0), make_batch()
    tokens = objective.student(batch.images)
    expected, _ = TokenLabelingLoss(token_weight=0.5)(
        objective.student.classify(tokens.cls),
        objective.token_head(tokens.patch),
        F.one_hot(batch.labels, 5).float(),
        batch.score_maps.flatten(2).mT,
    )
    output = objective(batch)
    torch.testing.assert_close(output.loss, expected)
    assert set(output.metrics) == {"train/loss_cls", "train/loss_token", "train/top1"}


def test_mixed_images_have_mixed_labels(small_vit):
    """Closed form: cross-entropy is linear in its target."""
    objective = create(small_vit().eval(), smoothing=0.1)
    plain = make_batch(4, maps=False)
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed = dataclasses.replace(plain, partner_share=share)
    logits = objective.student.model(plain.images)
    own = F.cross_entropy(logits, plain.labels, label_smoothing=0.1, reduction="none")
    theirs = F.cross_entropy(logits, plain.labels.flip(0), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(objective(mixed).loss, ((1 - share) * own + share * theirs).mean())


def test_mixing_patches_is_mixing_pixels_along_patch_borders(small_vit):
    """Reference: images, maps and labels cut and pasted by hand, then trained without a box."""
    objective, batch = create(small_vit().eval(), 0.5, smoothing=0.0), make_batch(4)
    images, maps = batch.images.clone(), batch.score_maps.clone()
    images[:, :, 4:12, 8:16] = batch.images.flip(0)[:, :, 4:12, 8:16]
    maps[:, :, 1:3, 2:4] = batch.score_maps.flip(0)[:, :, 1:3, 2:4]
    one_hot = F.one_hot(batch.labels, 5).float()
    tokens = objective.student(images)
    expected, _ = TokenLabelingLoss(token_weight=0.5)(
        objective.student.classify(tokens.cls),
        objective.token_head(tokens.patch),
        0.75 * one_hot + 0.25 * one_hot.flip(0),
        maps.flatten(2).mT,
    )
    torch.testing.assert_close(objective(make_batch(4, box=BOX)).loss, expected)


def test_mixing_without_score_maps_mixes_the_class_target(small_vit):
    objective, batch = create(small_vit().eval()), make_batch(2, maps=False, box=BOX)
    images = batch.images.clone()
    images[:, :, 4:12, 8:16] = batch.images.flip(0)[:, :, 4:12, 8:16]
    one_hot = F.one_hot(batch.labels, 5).float()
    target = 0.75 * one_hot + 0.25 * one_hot.flip(0)
    expected = F.cross_entropy(objective.student.model(images), target, label_smoothing=0.1)
    torch.testing.assert_close(objective(batch).loss, expected)


@pytest.mark.parametrize("size", [1, 3])
def test_odd_batches_train(small_vit, size):
    output = create(small_vit(), 0.5)(make_batch(size, box=BOX))
    output.loss.backward()
    assert output.loss.isfinite()


def test_a_batch_of_one_is_not_mixed(small_vit):
    objective = create(small_vit().eval(), 0.5)
    mixed, plain = objective(make_batch(1, box=BOX)), objective(make_batch(1))
    torch.testing.assert_close(mixed.loss, plain.loss)


def test_gradient_reaches_every_parameter(small_vit):
    objective = create(small_vit(), 0.5)
    objective(make_batch(box=BOX)).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_the_token_head_is_not_part_of_the_exported_model(small_vit):
    objective = create(small_vit(), 0.5)
    extra = {name for name, _ in objective.named_parameters() if not name.startswith("student.")}
    assert extra == {"token_head.weight", "token_head.bias"}
    assert create(small_vit()).token_head is None


def test_a_resnet_takes_token_labels_too():
    config = ModelConfig(name="resnet8_small", width=4)
    objective = create(create_backbone(config, num_classes=5, image_size=16), 0.5)
    objective(make_batch()).loss.backward()
    assert objective.token_head.weight.grad.abs().sum() > 0


def test_top1_is_the_share_of_right_answers(small_vit):
    objective, batch = create(small_vit().eval()), make_batch(maps=False)
    objective.student.model.head.weight.data.zero_()
    objective.student.model.head.bias.data = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    assert objective(batch).metrics["train/top1"].item() == pytest.approx(1 / 3)


def test_token_labeling_without_score_maps_is_refused(small_vit):
    with pytest.raises(AssertionError, match="token labeling needs score maps"):
        create(small_vit(), 0.5)(make_batch(maps=False))


def at(batch: LabeledBatch, progress: float) -> LabeledBatch:
    return dataclasses.replace(batch, progress=progress)


def test_the_token_term_is_left_out_after_its_point_with_what_it_needs(small_vit):
    """Then the loss is that of the image alone, and no map is asked for."""
    objective = create(small_vit().eval(), 0.5, token_until=0.4)
    batch = at(make_batch(maps=False), 0.4)
    plain = create(small_vit().eval())(batch)
    output = objective(batch)
    torch.testing.assert_close(output.loss, plain.loss)
    assert set(output.metrics) == {"train/top1"}
    assert "train/loss_token" in objective(at(make_batch(), 0.39)).metrics


def test_the_token_term_fades(small_vit):
    objective, batch = create(small_vit().eval(), 0.5, token_decay="linear"), make_batch()
    whole, quarter = (objective(at(batch, progress)) for progress in (0.0, 0.75))
    cls, token = (whole.metrics[f"train/loss_{name}"] for name in ("cls", "token"))
    torch.testing.assert_close(whole.loss, cls + 0.5 * token)
    torch.testing.assert_close(quarter.loss, cls + 0.125 * token)


def test_a_shared_head_reads_tokens_with_the_image_classifier(small_vit):
    objective = create(small_vit().eval(), 1.0, token_head="shared", smoothing=0.0)
    batch = make_batch()
    tokens = objective.student(batch.images)
    expected, _ = TokenLabelingLoss(token_weight=1.0)(
        objective.student.classify(tokens.cls),
        objective.student.classify(tokens.patch),
        F.one_hot(batch.labels, 5).float(),
        token_labels_from(batch.score_maps),
    )
    torch.testing.assert_close(objective(batch).loss, expected)
    assert objective.token_head is None


def test_relabel_is_the_pooled_map_alone(small_vit):
    """Yun et al.: the crop's label is the mean of its map; a CNN needs no token head for it."""
    config = ModelConfig(name="resnet8_small", width=4)
    backbone = create_backbone(config, num_classes=5, image_size=16).eval()
    objective = create(backbone, 0.0, smoothing=0.0, cls_target="pooled")
    batch = make_batch()
    logits = backbone.model(batch.images)
    expected = soft_cross_entropy(logits, batch.score_maps.mean(dim=(2, 3))).mean()
    torch.testing.assert_close(objective(batch).loss, expected)
    assert [name for name, _ in objective.named_parameters() if "student" not in name] == []


def test_the_pooled_target_is_mixed_by_area_with_the_tokens(small_vit):
    objective = create(small_vit().eval(), 0.0, smoothing=0.0, cls_target="pooled")
    batch = make_batch(4, box=BOX)
    images = batch.images.clone()
    images[:, :, 4:12, 8:16] = batch.images.flip(0)[:, :, 4:12, 8:16]
    pooled = batch.score_maps.mean(dim=(2, 3))
    target = 0.75 * pooled + 0.25 * pooled.flip(0)
    expected = soft_cross_entropy(objective.student.model(images), target).mean()
    torch.testing.assert_close(objective(batch).loss, expected)


@pytest.mark.parametrize("name", ["gani_swin", "resnet8_small"])
def test_networks_that_reduce_their_grid_mix_the_same_part_of_their_first_one(name):
    """Reference: pixels cut and pasted by hand where the box lies."""
    swin = {"embed_dim": 24, "window_size": 2, "patch_size": 1}
    sizes = swin if name == "gani_swin" else {"width": 4}
    config = ModelConfig(name=name, **sizes)
    backbone = create_backbone(config, num_classes=5, image_size=16).eval()
    height, width = backbone.grid(16)
    box = TokenBox(top=0, left=1, bottom=height // 2, right=width, grid=(height, width))
    first = backbone.embed_grid(16)
    assert first[0] > height
    images = make_batch(2).images
    mixed = mix_tokens(backbone.embed(images), box)
    cell = 16 // width
    pasted = images.clone()
    pasted[:, :, : box.bottom * cell, cell:] = images.flip(0)[:, :, : box.bottom * cell, cell:]
    inside = (slice(None), slice(0, box.bottom * first[0] // height - 1))
    columns = slice(first[1] // width + 1, None)
    # A convolution sees its neighbours: one row and column at the edge may differ.
    torch.testing.assert_close(
        mixed[inside][:, :, columns], backbone.embed(pasted)[inside][:, :, columns]
    )
    maps = torch.full((2, 5, height, width), 0.2)
    batch = LabeledBatch(images=images, labels=torch.arange(2), score_maps=maps, mix_box=box)
    assert create(backbone, 0.5)(batch).loss.isfinite()


def test_an_online_teacher_labels_the_batch_that_the_student_sees(small_vit):
    teacher = Teacher(small_vit(mlp_ratio=2.0))
    objective = create(small_vit().eval(), 0.5, teacher=OnlineTeacher(teacher), source="online")
    batch = make_batch(maps=False, box=BOX)
    stored = dataclasses.replace(batch, score_maps=teacher(batch.images))
    reference = create(small_vit().eval(), 0.5)
    torch.testing.assert_close(objective(batch).loss, reference(stored).loss)


def test_the_weights_of_an_online_teacher_are_neither_trained_nor_saved(small_vit):
    teacher = Teacher(small_vit())
    objective = create(small_vit(), 0.5, teacher=OnlineTeacher(teacher), source="online").train()
    assert objective.state_dict().keys() == create(small_vit(), 0.5).state_dict().keys()
    objective(make_batch(maps=False)).loss.backward()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not teacher.backbone.training


def test_the_students_average_moves_by_its_momentum_and_is_saved(small_vit):
    objective = create(small_vit(), 0.5, source="ema", ema_momentum=0.75)
    average = objective.ema_teacher
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    objective.after_step(0.5)
    for mine, was in zip(average.parameters(), before, strict=True):
        torch.testing.assert_close(mine, was + 0.25)
    assert any(name.startswith("ema_teacher.token_head") for name in objective.state_dict())
    assert not any(p.requires_grad for p in average.parameters())


def test_the_students_average_labels_patches_by_its_own_token_head(small_vit):
    objective = create(small_vit().eval(), 0.5, source="ema")
    batch = make_batch(maps=False)
    average = objective.ema_teacher
    prob = average.token_head(average.backbone(batch.images).patch).softmax(dim=-1)
    stored = dataclasses.replace(batch, score_maps=prob.mT.unflatten(2, (4, 4)).detach())
    torch.testing.assert_close(objective(batch).loss, create(small_vit().eval(), 0.5)(stored).loss)


def test_a_network_with_its_own_token_head_shares_no_classifier():
    config = ModelConfig(name="lvvit_tiny", patch_size=2, embed_dim=16, depth=1, num_heads=2)
    backbone = create_backbone(config, num_classes=5, image_size=16)
    with pytest.raises(ConfigError, match="lvvit_tiny has a token head of its own"):
        create(backbone, 0.5, token_head="shared")
