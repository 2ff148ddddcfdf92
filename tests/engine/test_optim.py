import pytest
import torch
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.engine.optim import (
    OptimConfig,
    ScheduleConfig,
    check_schedule,
    clip_gradients_,
    create_optimizer,
    set_schedule,
)

OPTIM = OptimConfig(lr=1e-3, weight_decay=0.04, weight_decay_end=0.4)
SCHEDULE = ScheduleConfig(epochs=10.0, warmup_epochs=1.0, min_lr=1e-6)


@pytest.fixture
def optimizer(small_vit) -> torch.optim.AdamW:
    return create_optimizer(small_vit(), OPTIM)


def lr_at(optimizer, step: int, total: int = 100, schedule: ScheduleConfig = SCHEDULE) -> float:
    return set_schedule(optimizer, OPTIM, schedule, step=step, total_steps=total)


def decays(optimizer) -> list[float]:
    """Weight decay of the groups, the lowest first."""
    return sorted(group["weight_decay"] for group in optimizer.param_groups)


def test_warm_up_is_linear(optimizer):
    """Ten steps of warm-up: step 0 has 1/11 of the peak, step 9 has 10/11, step 10 the peak."""
    rates = [lr_at(optimizer, step) for step in range(11)]
    assert rates == pytest.approx([1e-3 * (step + 1) / 11 for step in range(11)])


def test_cosine_is_half_way_down_in_the_middle(optimizer):
    assert lr_at(optimizer, 55) == pytest.approx((1e-3 + 1e-6) / 2)


def test_learning_rate_ends_at_its_minimum(optimizer):
    assert lr_at(optimizer, 100) == pytest.approx(1e-6)
    assert lr_at(optimizer, 99) == pytest.approx(1e-6, abs=1e-6)


def test_the_peak_is_the_highest(optimizer):
    rates = [lr_at(optimizer, step) for step in range(100)]
    assert max(rates) == rates[10] == pytest.approx(1e-3)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.04), (50, 0.22), (100, 0.4)])
def test_weight_decay_goes_from_start_to_end(optimizer, step, decay):
    lr_at(optimizer, step)
    assert decays(optimizer) == pytest.approx([0.0, decay])


def test_weight_decay_without_an_end_is_constant(optimizer):
    config = OptimConfig(weight_decay=0.04)
    for step in (0, 50, 100):
        set_schedule(optimizer, config, SCHEDULE, step=step, total_steps=100)
        assert decays(optimizer) == pytest.approx([0.0, 0.04])


@pytest.mark.parametrize(("total", "peak"), [(1, 0.5), (2, 1), (5, 2.5), (20, 10)])
def test_a_run_shorter_than_its_warm_up_warms_up_for_half(optimizer, total, peak):
    schedule = ScheduleConfig(epochs=1.0, warmup_epochs=5.0)
    rates = [lr_at(optimizer, step, total, schedule) for step in range(total)]
    rising = [step for step in range(total) if step < peak]
    assert rates[: len(rising)] == pytest.approx([1e-3 * (s + 1) / (peak + 1) for s in rising])
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert rates[len(rising) :] == sorted(rates[len(rising) :], reverse=True)


def test_without_warm_up_the_run_starts_at_the_peak(optimizer):
    schedule = ScheduleConfig(epochs=10.0, warmup_epochs=0.0)
    assert lr_at(optimizer, 0, 100, schedule) == pytest.approx(1e-3)


def test_learning_rate_reaches_every_group(optimizer):
    rate = lr_at(optimizer, 3)
    assert {group["lr"] for group in optimizer.param_groups} == {rate}


def test_positions_class_token_biases_and_norms_are_not_decayed(small_vit):
    model = small_vit()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = create_optimizer(model, OPTIM).param_groups
    undecayed = {names[id(p)] for g in groups if not g["decayed"] for p in g["params"]}
    decayed = {names[id(p)] for g in groups if g["decayed"] for p in g["params"]}
    assert undecayed == {
        name
        for name in names.values()
        if name.endswith((".bias", "pos_embed", "cls_token")) or ".norm" in name
    }
    assert {"model.pos_embed", "model.cls_token", "model.norm.weight"} <= undecayed
    assert decayed == set(names.values()) - undecayed
    assert all(name.endswith(".weight") for name in decayed)


def test_decay_of_matrices_exempts_biases_and_single_axes_alone(dino):
    """The rule of the paper's stage 1: positions and class tokens are decayed too."""
    objective = dino()
    names = {id(p): name for name, p in objective.named_parameters()}
    groups = create_optimizer(objective, OptimConfig(decay="matrices")).param_groups
    exempt = {names[id(p)] for g in groups if not g["decayed"] for p in g["params"]}
    trained = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    assert exempt == {name for name, p in trained if p.ndim == 1 or name.endswith(".bias")}
    assert exempt.isdisjoint({"student.model.pos_embed", "student.model.cls_token"})
    assert "student.model.norm.weight" in exempt


def test_decay_of_all_exempts_nothing(small_vit):
    """The rule of the paper's stage 2."""
    model = small_vit()
    config = OptimConfig(weight_decay=0.05, decay="all")
    (group,) = create_optimizer(model, config).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    optimizer = create_optimizer(model, config)
    set_schedule(optimizer, config, SCHEDULE, step=50, total_steps=100)
    assert decays(optimizer) == [0.05]


@pytest.mark.parametrize(
    ("decay", "shrunk"),
    [("products", ["weight"]), ("matrices", ["pos_embed", "weight"]), ("all", None)],
)
def test_decay_shrinks_what_it_names(decay, shrunk):
    """Closed form: without a gradient AdamW multiplies by 1 - lr * decay."""
    model = nn.Linear(3, 3)
    model.register_parameter("pos_embed", nn.Parameter(torch.ones(1, 2, 3)))
    config = OptimConfig(lr=0.1, weight_decay=0.5, decay=decay)
    optimizer = create_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if shrunk is None or name in shrunk else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(values)
    return parameters


def test_clipping_by_parameter_scales_each_gradient_by_itself():
    """Closed form: norms 5, 13 and 1 with a limit of 2.5; all together it is the root of 195."""
    parameters = with_gradients([3.0, 4.0], [5.0, 12.0], [0.6, 0.8])
    parameters.append(nn.Parameter(torch.zeros(2)))  # has no gradient
    norm = clip_gradients_(parameters, 2.5, "parameter")
    torch.testing.assert_close(norm, torch.tensor(195.0).sqrt())
    expected = ([1.5, 2.0], [5 * 2.5 / 13, 12 * 2.5 / 13], [0.6, 0.8])
    for parameter, values in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, torch.tensor(values))
    assert parameters[-1].grad is None


def test_clipping_globally_scales_all_gradients_alike():
    parameters = with_gradients([3.0, 4.0], [5.0, 12.0], [0.6, 0.8])
    norm = clip_gradients_(parameters, 2.5, "global")
    torch.testing.assert_close(norm, torch.tensor(195.0).sqrt())
    factor = 2.5 / 195**0.5
    for parameter, values in zip(parameters, ([3.0, 4.0], [5.0, 12.0], [0.6, 0.8]), strict=True):
        torch.testing.assert_close(parameter.grad, factor * torch.tensor(values))


@pytest.mark.parametrize("limit", [100.0, float("inf")])
def test_gradients_below_the_limit_stay_as_they_are(limit):
    for mode in ("global", "parameter"):
        (parameter,) = with_gradients([3.0, 4.0])
        assert clip_gradients_([parameter], limit, mode) == 5.0
        torch.testing.assert_close(parameter.grad, torch.tensor([3.0, 4.0]))


def test_a_gradient_that_is_not_finite_shows_in_the_norm_in_both_modes():
    for mode in ("global", "parameter"):
        for value in (float("nan"), float("inf")):
            parameters = with_gradients([3.0, 4.0], [value, 0.0])
            assert not clip_gradients_(parameters, 2.5, mode).isfinite()


def test_the_undecayed_stay_undecayed_over_the_schedule(optimizer):
    for step in (0, 50, 100):
        lr_at(optimizer, step)
        assert [g["weight_decay"] for g in optimizer.param_groups if not g["decayed"]] == [0.0]


def test_a_decay_that_starts_at_zero_still_rises(small_vit):
    config = OptimConfig(weight_decay=0.0, weight_decay_end=0.4)
    optimizer = create_optimizer(small_vit(), config)
    set_schedule(optimizer, config, SCHEDULE, step=100, total_steps=100)
    assert decays(optimizer) == pytest.approx([0.0, 0.4])


def test_a_teacher_without_gradient_is_not_optimised(dino):
    objective = dino()
    groups = create_optimizer(objective, OPTIM).param_groups
    optimised = {id(p) for group in groups for p in group["params"]}
    assert not optimised & {id(p) for p in objective.ema_teacher.parameters()}
    assert not optimised & {id(p) for p in objective.ema_teacher_head.parameters()}
    assert id(objective.student_head.last_layer.weight_v) in optimised


def test_a_minimum_above_the_peak_is_refused():
    with pytest.raises(ConfigError, match=r"min_lr \(0.1\) is above optim.lr \(0.001\)"):
        check_schedule(OptimConfig(), ScheduleConfig(min_lr=0.1))
