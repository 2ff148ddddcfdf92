import math

import pytest
import torch
import torch.nn.functional as F

from smallvit.pretraining.config import PrototypeConfig
from smallvit.pretraining.prototypes import create_head, target_metrics


def head(**changes):
    sizes = {"num_prototypes": 6, "hidden_dim": 8, "bottleneck_dim": 4}
    torch.manual_seed(0)
    return create_head(5, PrototypeConfig(**(sizes | changes)))


def test_output_is_the_cosine_to_each_prototype():
    """Closed form: bottleneck and prototypes have length one."""
    built, x = head(), torch.randn(3, 5)
    prototypes = F.normalize(built.last_layer.weight_v, dim=1)
    torch.testing.assert_close(built(x), F.normalize(built.layers(x), dim=1) @ prototypes.T)
    assert built(x).abs().max() <= 1


def test_length_of_the_prototypes_is_not_trained():
    built = head()
    assert [n for n, p in built.named_parameters() if not p.requires_grad] == [
        "last_layer.weight_g"
    ]


def test_widths_and_batch_norm_are_those_asked_for():
    parameters = {n: tuple(p.shape) for n, p in head().named_parameters()}
    assert sorted(
        shape for n, shape in parameters.items() if "layers" in n and len(shape) == 2
    ) == [
        (4, 8),
        (8, 5),
        (8, 8),
    ]
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in head().modules())
    normalised = head(head_batch_norm=True).modules()
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in normalised) == 2


@pytest.mark.parametrize(
    ("epoch", "value"), [(0.0, 0.04), (5.0, 0.055), (9.9, 0.0697), (10.0, 0.07), (50.0, 0.07)]
)
def test_warm_up_is_linear_then_constant(epoch, value):
    assert PrototypeConfig().target_temp(epoch) == pytest.approx(value)


def test_no_warm_up_is_at_its_end_at_once():
    assert PrototypeConfig(warmup_teacher_temp_epochs=0.0).target_temp(0.0) == 0.07


def entropies(logits, centre, temp):
    metrics = target_metrics(logits, centre, temp)
    return [metrics[f"train/{name}_entropy"].item() for name in ("teacher", "prototype")]


def test_uniform_targets_have_entropy_log_k():
    centre = torch.randn(1, 1, 6)
    assert entropies(centre.expand(2, 3, 6), centre, 0.04) == pytest.approx([math.log(6)] * 2)


def test_one_hot_targets_have_no_entropy_and_use_as_many_prototypes_as_they_differ():
    logits = 100 * torch.eye(6).repeat(2, 1, 1)
    assert entropies(logits, torch.zeros(6), 0.1) == pytest.approx([0, math.log(6)], abs=1e-6)
    assert entropies(logits[:, :1], torch.zeros(6), 0.1) == pytest.approx([0, 0], abs=1e-6)


def test_entropy_is_the_mean_over_samples_and_that_of_their_mean():
    """Closed form: probabilities 1/4 and 3/4 at temperature 0.5, then uniform."""
    logits = torch.tensor([[[0.0, 0.5 * math.log(3)], [0.0, 0.0]]])
    first = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    mean = -(0.375 * math.log(0.375) + 0.625 * math.log(0.625))
    assert entropies(logits, torch.zeros(2), 0.5) == pytest.approx(
        [(first + math.log(2)) / 2, mean]
    )
