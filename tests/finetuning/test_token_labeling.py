import math

import pytest
import torch
from jaxtyping import TypeCheckError

from smallvit.core.errors import ConfigError
from smallvit.finetuning.token_labeling import (
    TokenLabelingLoss,
    soft_cross_entropy,
    token_labels_from,
)

B, N, C = 2, 9, 5


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "cls_logits": torch.randn(B, C, generator=generator),
        "token_logits": torch.randn(B, N, C, generator=generator),
        "labels": torch.eye(C)[[1, 3]],
        "token_labels": torch.rand(B, N, C, generator=generator).softmax(dim=-1),
    }


@pytest.mark.parametrize("token_weight", [0.0, 0.5, 1.0])
def test_uniform_logits_cost_log_of_the_number_of_classes(batch, token_weight):
    """Closed form: uniform predictions cost log C per term, whatever the targets."""
    flat = batch | {"cls_logits": torch.zeros(B, C), "token_logits": torch.zeros(B, N, C)}
    loss, _ = TokenLabelingLoss(token_weight=token_weight)(**flat)
    torch.testing.assert_close(loss, torch.tensor((1 + token_weight) * math.log(C)))


def test_cross_entropy_of_a_distribution_with_itself_is_its_entropy():
    prob = torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(
        soft_cross_entropy(prob.log(), prob), torch.tensor(1.5 * math.log(2))
    )


def test_matches_reference_implementation(batch):
    # Value of zihangJiang/TokenLabeling@9dbfd59, tlt/loss/cross_entropy.py, on this batch, with
    # dense_weight=0.5 and the image label in both columns that stand before the token labels.
    loss, parts = TokenLabelingLoss(token_weight=0.5)(**batch)
    torch.testing.assert_close(loss, torch.tensor(3.3630967), rtol=1e-5, atol=0)
    assert set(parts) == {"train/loss_cls", "train/loss_token"}
    torch.testing.assert_close(parts["train/loss_cls"] + 0.5 * parts["train/loss_token"], loss)


def test_zero_weight_ignores_the_token_labels(batch):
    other = batch | {"token_labels": batch["token_labels"].flip(0)}
    criterion = TokenLabelingLoss(token_weight=0)
    torch.testing.assert_close(criterion(**batch)[0], criterion(**other)[0])


def test_every_token_counts_alike(batch):
    """Shuffling the tokens together with their labels changes nothing."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = batch | {key: batch[key][:, order] for key in ("token_logits", "token_labels")}
    criterion = TokenLabelingLoss()
    torch.testing.assert_close(criterion(**batch)[0], criterion(**shuffled)[0])


def test_the_logged_terms_carry_no_gradient(batch):
    logits = batch["cls_logits"].clone().requires_grad_()
    loss, parts = TokenLabelingLoss()(**batch | {"cls_logits": logits})
    assert loss.requires_grad
    assert not any(term.requires_grad for term in parts.values())


@pytest.mark.parametrize("token_weight", [-1.0, -1e-9])
def test_rejects_a_negative_weight(token_weight):
    with pytest.raises(ConfigError, match="must not be negative"):
        TokenLabelingLoss(token_weight=token_weight)


def test_shapes_are_checked_in_tests(batch):
    """The jaxtyping hook is on: one token too many is refused at the call, by name."""
    misshapen = batch | {"token_logits": torch.zeros(B, N + 1, C)}
    with pytest.raises(TypeCheckError, match="token_labels"):
        TokenLabelingLoss()(**misshapen)


def test_token_labels_are_row_major():
    score_map = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert token_labels_from(score_map).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_token_labels_are_in_the_order_of_a_vits_patches(small_vit):
    """The label of the place that changes belongs to the token that changes."""
    backbone = small_vit().eval()
    images, score_map = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 4, 4)
    images[:, :, 4:8, 12:16] = score_map[:, :, 1, 3] = 1
    patches = backbone.embed(images).flatten(1, 2)
    changed = (patches - backbone.embed(torch.zeros_like(images)).flatten(1, 2)).abs().sum(dim=-1)
    assert changed.argmax() == token_labels_from(score_map)[..., 0].argmax() == 7
