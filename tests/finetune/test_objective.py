import dataclasses

import pytest
import torch
import torch.nn.functional as F

from smallvit.data.batches import LabelledBatch, TokenBox
from smallvit.finetune.objective import FinetuneObjective, SupervisedConfig
from smallvit.finetune.token_labeling import TokenLabelingLoss
from smallvit.models.registry import ModelConfig, create_backbone

BOX = TokenBox(top=1, left=2, bottom=3, right=4)


def make_batch(size: int = 3, *, maps: bool = True, box: TokenBox | None = None) -> LabelledBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 16, 16, generator=generator)
    score_maps = torch.randn(size, 5, 4, 4, generator=generator).softmax(dim=1)
    return LabelledBatch(
        images=images,
        labels=torch.arange(size) % 5,
        score_maps=score_maps if maps else None,
        mix_box=box,
    )


def create(backbone, token_weight: float | None = None, smoothing: float = 0.1):
    torch.manual_seed(3)
    config = SupervisedConfig(label_smoothing=smoothing)
    return FinetuneObjective(backbone, num_classes=5, config=config, token_weight=token_weight)


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
