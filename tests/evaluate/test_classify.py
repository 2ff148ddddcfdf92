import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from smallvit.evaluate.classify import (
    classification_metrics,
    confusion_matrix,
    mean_per_class,
    predicted_classes,
)


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


def scored(num: int = 120, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num, classes, generator=generator)
    return logits, torch.randint(classes, (num,), generator=generator)


def test_confusion_counts_true_classes_in_rows():
    logits = torch.eye(3)[[0, 2, 2, 1]]
    wanted = [[1, 0, 1], [0, 0, 1], [0, 1, 0]]
    assert confusion_matrix(logits, torch.tensor([0, 0, 1, 2])).tolist() == wanted


def test_confusion_equals_that_of_scikit_learn():
    logits, labels = scored()
    wanted = sklearn_confusion_matrix(labels.numpy(), logits.argmax(dim=1).numpy())
    assert confusion_matrix(logits, labels).tolist() == wanted.tolist()


def test_a_class_that_nothing_has_or_is_taken_for_keeps_its_row_and_column():
    logits = torch.tensor([[1.0, 0.0, -1.0, -1.0]])
    assert confusion_matrix(logits, torch.tensor([1])).shape == (4, 4)


def test_mean_per_class_counts_rare_classes_as_much_as_frequent_ones():
    logits = torch.eye(2)[[0] * 10]
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert classification_metrics(logits, labels)["top1"] == 0.8
    assert mean_per_class(logits, labels) == 0.5


def test_mean_per_class_is_the_balanced_accuracy_of_scikit_learn():
    logits, labels = scored()
    wanted = balanced_accuracy_score(labels.numpy(), logits.argmax(dim=1).numpy())
    assert mean_per_class(logits, labels) == pytest.approx(wanted)


def test_mean_per_class_leaves_out_a_class_without_images():
    assert mean_per_class(torch.eye(3)[[0, 1]], torch.tensor([0, 0])) == 0.5


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_of_equal_logits_all_metrics_take_the_same(classes):
    logits, labels = scored(400, classes)
    logits = (2 * logits).round()
    top1 = classification_metrics(logits, labels)["top1"]
    right = (predicted_classes(logits) == labels).double().mean().item()
    assert right == top1
    assert confusion_matrix(logits, labels).diagonal().sum().item() == round(top1 * 400)
