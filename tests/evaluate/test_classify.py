import math

import pytest
import torch

from smallvit.evaluate.classify import classification_metrics


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_uniform_logits_cost_the_logarithm_of_the_class_count(num_classes):
    metrics = classification_metrics(torch.zeros(4, num_classes), torch.tensor([0, 1, 0, 1]))
    assert metrics["nll"] == pytest.approx(math.log(num_classes))


def test_top1_and_top5_are_counted_by_hand():
    # Logits fall with the class index: class 0 is first, classes 0 to 4 are among five.
    logits = -torch.arange(8.0).expand(5, 8).contiguous()
    metrics = classification_metrics(logits, torch.tensor([0, 0, 4, 5, 7]))
    assert (metrics["top1"], metrics["top5"], metrics["n"]) == (0.4, 0.6, 5)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_top5_of_five_classes_or_fewer_is_one(num_classes):
    logits = torch.rand(6, num_classes, generator=torch.Generator().manual_seed(0))
    assert classification_metrics(logits, torch.zeros(6, dtype=torch.int64))["top5"] == 1.0


def test_nll_equals_the_softmax_in_closed_form():
    metrics = classification_metrics(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([1]))
    assert metrics["nll"] == pytest.approx(math.log(4.0))
    assert metrics["top1"] == 0.0


def test_accuracy_of_many_images_is_exact():
    num = 20_000_001 // 1000
    labels = torch.zeros(num, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0]]).repeat(num, 1)
    logits[0] = torch.tensor([0.0, 1.0])
    assert classification_metrics(logits, labels)["top1"] == (num - 1) / num
