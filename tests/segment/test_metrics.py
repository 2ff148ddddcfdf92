import numpy as np
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from smallvit.segment.objective import (
    class_ious,
    count_confusion,
    majority_confusion,
    segment_metrics,
)


def confusion(truth, predicted, num_classes):
    truth, predicted = (torch.tensor(x).reshape(1, 1, -1) for x in (truth, predicted))
    return count_confusion(truth, predicted, num_classes)


def test_rows_are_the_truth_and_ignored_pixels_are_in_no_cell():
    matrix = confusion([0, 0, 1, 1, 255], [0, 1, 1, 1, 0], 2)
    assert matrix.tolist() == [[1, 1], [0, 2]]


def test_closed_form_of_four_pixels():
    """IoU 1/2 and 2/3, three of four pixels right."""
    scores = segment_metrics(confusion([0, 0, 1, 1], [0, 1, 1, 1], 2))
    assert scores == {"miou": (1 / 2 + 2 / 3) / 2, "pixel_accuracy": 0.75}


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    matrix = confusion([0, 0, 2, 2], [0, 2, 2, 2], 4)
    assert class_ious(matrix).isnan().tolist() == [False, True, False, True]
    assert segment_metrics(matrix)["miou"] == (1 / 2 + 2 / 3) / 2


def test_a_class_that_is_only_predicted_counts_as_zero():
    assert segment_metrics(confusion([0, 0], [0, 1], 2))["miou"] == 0.25


def test_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 5, (2, 3, 8, 8))
    scores = segment_metrics(count_confusion(torch.tensor(truth), torch.tensor(predicted), 5))
    flat = truth.ravel(), predicted.ravel()
    assert np.isclose(scores["miou"], jaccard_score(*flat, average="macro"))
    assert np.isclose(scores["pixel_accuracy"], accuracy_score(*flat))


def test_the_baseline_calls_every_pixel_the_most_frequent_training_class():
    train = torch.tensor([[[2, 2, 1, 255, 255, 255]]])
    held_out = torch.tensor([[[2, 0, 0, 255, 255, 255]]])
    matrix = majority_confusion(train, held_out, 3)
    assert matrix.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 1]]
