import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from smallvit.engine.checkpoint import as_scored, load_checkpoint
from smallvit.engine.ema import WeightAverage
from smallvit.engine.fit import fit

pytestmark = pytest.mark.exact


def averaging(plan, decay: float):
    return replace(plan, optim=replace(plan.optim, ema_decay=decay))


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_the_closed_form_of_the_weights_seen(decay):
    """Weight t has (1 - keep_t) times all that is kept after it; the start what is left."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 7.0)
    nn.init.constant_(layer.bias, 7.0)
    average = WeightAverage(layer, decay)
    keep = [min(decay, (1 + t) / (10 + t)) for t in range(40)]
    for step in range(40):
        nn.init.constant_(layer.weight, float(step))
        average.update(step)
    expected = 7.0 * math.prod(keep) + sum(
        t * (1 - keep[t]) * math.prod(keep[t + 1 :]) for t in range(40)
    )
    torch.testing.assert_close(average.state_dict()["weight"], torch.tensor([[expected]]))
    torch.testing.assert_close(average.state_dict()["bias"], torch.tensor([7.0]))


def test_a_short_run_forgets_its_start():
    """With a fixed decay of 0.9999 the start would have 99 % after 100 steps."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.constant_(layer.weight, 1e6)
    average = WeightAverage(layer, 0.9999)
    nn.init.zeros_(layer.weight)
    for step in range(100):
        average.update(step)
    assert average.state_dict()["weight"].abs().max() < 1


def test_weights_are_swapped_for_the_average_and_back_bit_for_bit():
    layer = nn.Linear(3, 3)
    average = WeightAverage(layer, 0.9)
    before = layer.weight.detach().clone()
    nn.init.zeros_(layer.weight)
    with average.in_use():
        assert torch.equal(layer.weight, before)
    assert not layer.weight.any()
    average.take_over()
    assert torch.equal(layer.weight, before)


def test_what_is_not_trained_is_not_averaged():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert list(WeightAverage(layer, 0.9).state_dict()) == ["weight"]


def test_the_average_is_what_is_scored_kept_and_left_at_the_end(finetune, labelled_batch, plan):
    plan = averaging(plan, 0.5)
    objective = finetune()
    seen = []

    def evaluate() -> dict[str, float]:
        seen.append(objective.student.model.head.weight.detach().clone())
        return {"val/top1": 1.0}

    fit(objective, labelled_batch, replace(plan, select_on="val/top1"), evaluate=evaluate)
    last = load_checkpoint(plan.folder / "checkpoints" / "last.pt")
    name = "student.model.head.weight"
    assert torch.equal(seen[-1], last["ema"][name])
    assert torch.equal(objective.student.model.head.weight, seen[-1])
    assert not torch.equal(last["objective"][name], seen[-1])  # training goes on from its own
    best = as_scored(load_checkpoint(plan.folder / "checkpoints" / "best.pt"))
    assert torch.equal(best[name], seen[0])


def test_averaging_leaves_the_training_as_it_is(finetune, labelled_batch, plan):
    with_average = averaging(replace(plan, folder=plan.folder.with_name("ema")), 0.9)
    (with_average.folder / "checkpoints").mkdir(parents=True)
    for each in (plan, with_average):
        fit(finetune(), labelled_batch, each)
    ours, theirs = (
        load_checkpoint(each.folder / "checkpoints" / "last.pt") for each in (plan, with_average)
    )
    torch.testing.assert_close(ours["objective"], theirs["objective"], rtol=0, atol=0)


def test_statistics_of_batch_norms_are_averaged_with_the_weights_and_frozen_ones_are_not():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.ema_teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.ema_teacher.requires_grad_(False)

    names = set(WeightAverage(Pair(), 0.9).state_dict())
    assert {"student.1.running_mean", "student.1.running_var"} <= names
    assert not any(name.startswith("ema_teacher") for name in names)
