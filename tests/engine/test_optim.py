import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.engine.config import OptimConfig, ScheduleConfig, check_schedule
from smallvit.engine.optim import clip_gradients_, create_optimizer, say_cut_warmup, set_schedule
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.models.registry import create_backbone

OPTIM = OptimConfig(lr=1e-3, weight_decay=0.04, weight_decay_end=0.4)
SCHEDULE = ScheduleConfig(epochs=10.0, warmup_epochs=1.0, min_lr=1e-6)
# T2T-ViT's transfer to CIFAR, with a warm-up.
TRANSFER = OptimConfig(name="sgd", lr=0.05, backbone_lr_scale=0.01, weight_decay=5e-4, decay="all")
TRANSFER_SCHEDULE = ScheduleConfig(epochs=10.0, warmup_epochs=1.0, min_lr=2e-4)

# One small network of each family, the size it is built for, and its classifiers.
TINY: dict[str, Any] = {"depth": 1, "embed_dim": 16, "num_heads": 2}
FAMILIES: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "vit_tiny": (TINY, 16, ("head",)),
    "gani_vit": (TINY, 16, ("head",)),
    "gani_cait": (TINY, 16, ("head",)),
    "gani_swin": ({"embed_dim": 24}, 32, ("head.fc",)),
    "sl_vit": (TINY, 16, ("head",)),
    "lvvit_tiny": (TINY, 16, ("head", "token_head")),
    "t2t_vit_7": (TINY, 32, ("head",)),
    "t2t_vit_t_7": (TINY, 32, ("head",)),
    "cct_7_3x1": (TINY, 16, ("head",)),
    "resnet8_small": ({"width": 4}, 16, ("fc",)),
    "resnet18_small": ({"width": 4}, 16, ("fc",)),
    "convnext_atto_small": ({}, 32, ("head.fc",)),
    "resnet10t": ({}, 96, ("fc",)),
}


@pytest.fixture
def optimizer(small_vit) -> torch.optim.Optimizer:
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


@pytest.mark.parametrize(("total", "peak"), [(1, 0.25), (2, 0.5), (6, 1.5), (20, 5)])
def test_a_run_shorter_than_its_warm_up_warms_up_for_a_quarter(optimizer, total, peak):
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


@pytest.mark.parametrize("family", FAMILIES)
def test_each_trained_parameter_is_in_one_group_with_its_own_rate(family):
    settings, size, classifiers = FAMILIES[family]
    config = ModelConfig(name=family, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="patches of")
        model = create_backbone(config, num_classes=3, image_size=size)
    heads = {f"model.{name}.{key}" for name in classifiers for key in ("weight", "bias")}
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for decay in ("products", "matrices", "all"):
        optim = OptimConfig(backbone_lr_scale=0.5, decay=decay)
        optimizer = create_optimizer(model, optim)
        set_schedule(optimizer, optim, SCHEDULE, step=10, total_steps=100)
        groups = optimizer.param_groups
        found = [id(p) for group in groups for p in group["params"]]
        assert len(found) == len(set(found))
        assert set(found) == set(trained)
        rates = {trained[id(p)]: group["lr"] for group in groups for p in group["params"]}
        assert rates == {name: 1e-3 if name in heads else 5e-4 for name in trained.values()}
        # Rates apart change nothing about which parameters are decayed.
        together = create_optimizer(model, OptimConfig(decay=decay)).param_groups
        assert decayed_of(groups) == decayed_of(together)


def decayed_of(groups: list[dict[str, Any]]) -> set[int]:
    return {id(p) for group in groups if group["decayed"] for p in group["params"]}


def test_the_token_head_of_training_has_the_rate_of_heads(small_vit):
    objective = FinetuneObjective(
        small_vit(),
        num_classes=5,
        config=SupervisedConfig(),
        token_label=TokenLabelConfig(enabled=True),
    )
    groups = create_optimizer(objective, TRANSFER).param_groups
    names = {id(p): name for name, p in objective.named_parameters()}
    heads = {names[id(p)] for g in groups if g["lr_scale"] == 1 for p in g["params"]}
    assert heads == {
        f"{head}.{key}"
        for head in ("token_head", "student.model.head")
        for key in ("weight", "bias")
    }
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_projection_heads_of_stage_1_have_the_rate_of_heads(dino):
    objective = dino()
    groups = create_optimizer(objective, OptimConfig(backbone_lr_scale=0.1)).param_groups
    names = {id(p): name for name, p in objective.named_parameters()}
    for group in groups:
        # This student was built with a classifier.
        heads = ("student_head.", "student.model.head.")
        of_heads = [names[id(p)].startswith(heads) for p in group["params"]]
        assert set(of_heads) == {group["lr_scale"] == 1}
    assert {group["lr_scale"] for group in groups} == {0.1, 1.0}


def rates_at(step: int, optimizer: torch.optim.Optimizer) -> tuple[float, float, float]:
    """Return what ``set_schedule`` returns, and the rates of heads and backbone."""
    lr = set_schedule(optimizer, TRANSFER, TRANSFER_SCHEDULE, step=step, total_steps=100)
    rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
    return lr, rates[1.0], rates[0.01]


@pytest.mark.parametrize(
    ("step", "heads", "backbone"),
    [
        (0, 0.05 / 11, 5e-4 / 11),
        (10, 0.05, 5e-4),
        (55, (0.05 + 2e-4) / 2, (5e-4 + 2e-4) / 2),
        (100, 2e-4, 2e-4),
    ],
)
def test_warm_up_and_cosine_act_on_both_rates_and_the_minimum_is_that_of_both(
    small_vit, step, heads, backbone
):
    """Closed form, as CosineAnnealingLR with one eta_min has it for every group."""
    lr, *rates = rates_at(step, create_optimizer(small_vit(), TRANSFER))
    assert rates == pytest.approx([heads, backbone])
    assert lr == rates[0]


def test_rates_apart_outlive_a_checkpoint(small_vit):
    saved = create_optimizer(small_vit(), TRANSFER).state_dict()
    optimizer = create_optimizer(small_vit(), TRANSFER)
    optimizer.load_state_dict(saved)
    assert rates_at(10, optimizer) == pytest.approx((0.05, 0.05, 5e-4))


def test_rates_apart_move_heads_and_backbone_by_them(small_vit):
    """Closed form: plain SGD moves by the rate times the gradient."""
    model = small_vit()
    config = OptimConfig(name="sgd", lr=0.5, backbone_lr_scale=0.25, momentum=0.0, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = create_optimizer(model, config)
    schedule = ScheduleConfig(warmup_epochs=0.0)
    set_schedule(optimizer, config, schedule, step=0, total_steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.5 if name.startswith("model.head.") else 0.125
        torch.testing.assert_close(parameter.detach(), before[name] - rate)


def test_one_rate_is_adamw_bit_for_bit(small_vit):
    """Reference: torch's AdamW over two groups, with the schedule's rates."""
    ours, theirs = small_vit(), small_vit()
    optimizer = create_optimizer(ours, OPTIM)
    names = dict(theirs.named_parameters())
    kept = [n for n, p in names.items() if p.ndim == 1 or n.endswith(("pos_embed", "cls_token"))]
    groups = [
        {"params": [names[n] for n in names if n in kept], "weight_decay": 0.0},
        {"params": [names[n] for n in names if n not in kept]},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), fused=True)
    for step in range(3):
        lr_at(optimizer, step)
        for group in reference.param_groups:
            group["lr"] = 1e-3 * (step + 1) / 11
        reference.param_groups[1]["weight_decay"] = decays(optimizer)[-1]
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            stepped.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    # As checkpoints of runs with one rate have them.
    assert all("lr_scale" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbooks(nesterov):
    """Closed form: decay is a part of the gradient, momentum sums gradients."""
    model = nn.Linear(2, 1, bias=False)
    config = OptimConfig(
        name="sgd", lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.3, decay="all"
    )
    optimizer = create_optimizer(model, config)
    weight, total = model.weight.detach().clone(), torch.zeros(1, 2)
    for gradient in (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])):
        slope = gradient + 0.3 * weight
        total = 0.8 * total + slope
        weight = weight - 0.1 * (slope + 0.8 * total if nesterov else total)
        model.weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight)


def test_sgd_skips_an_update_that_is_not_finite():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer: Any = create_optimizer(model, OptimConfig(name="sgd", lr=0.1))
    for bad in (1.0, 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if bad else 1.0)
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()
        assert torch.equal(model.weight, before) == bool(bad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.8}, r"optim.momentum \(0.8\) is no setting of adamw: leave it out, or set"),
        ({"nesterov": True}, r"optim.nesterov \(True\) is no setting of adamw: .* optim.name sgd"),
        (
            {"name": "sgd", "betas": (0.9, 0.95)},
            r"optim.betas \(\(0.9, 0.95\)\) is no setting of sgd: .* optim.name adamw",
        ),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "optim.nesterov needs momentum"),
        (
            {"lr": 1e-3, "backbone_lr_scale": 1e-4},
            r"min_lr \(1e-06\) is above the backbone's .*backbone_lr_scale = 1e-07: lower it",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_schedule(OptimConfig(**settings), ScheduleConfig())


@pytest.mark.parametrize(
    "settings",
    [{"name": "sgd", "momentum": 0.8, "nesterov": True}, {"betas": (0.9, 0.95)}, vars(TRANSFER)],
)
def test_settings_of_the_optimizer_itself_are_taken(settings):
    check_schedule(OptimConfig(**settings), TRANSFER_SCHEDULE)


@pytest.mark.parametrize(("warmup", "said"), [(30.0, True), (1.25, False)])
def test_what_is_cut_of_a_warm_up_is_said(warmup, said, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smallvit"), "propagate", True)
    caplog.set_level(logging.INFO, "smallvit")
    say_cut_warmup(ScheduleConfig(epochs=5.0, warmup_epochs=warmup))
    assert ("schedule.warmup_epochs 30 is cut to 1.25" in caplog.text) is said
