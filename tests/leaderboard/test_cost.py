import pytest
import torch

from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.leaderboard.parts import cost
from smallvit.leaderboard.parts.cost import time_passes


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)
    monkeypatch.setattr(cost, "ROUND_S", 0.0)
    monkeypatch.setattr(cost, "MOST_APART", 100.0)


@pytest.fixture
def runtime() -> Runtime:
    return open_runtime(RuntimeConfig(device="cpu", precision="fp32"))


def hold_clock(monkeypatch, rounds_s):
    """A clock that stands still but for the rounds; of each batch size two warm the machine up."""
    times = [0.0]
    for _ in range(2):
        for round_s in (9.0, 0.5, *rounds_s):
            times += [times[-1], times[-1] + round_s]
    ticks = iter(times[1:])
    monkeypatch.setattr(cost, "MAX_EXPECTED_S", 1000.0)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))


def test_the_median_of_five_rounds_is_taken_after_a_warm_up(small_vit, runtime, monkeypatch):
    hold_clock(monkeypatch, (1.0, 1.1, 0.95, 1.05, 1.0))
    monkeypatch.setattr(cost, "MOST_APART", 0.2)
    passes = []
    backbone = small_vit()
    backbone.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    found = time_passes(backbone, 16, runtime)
    for timing in found.values():
        assert timing.latency_s == pytest.approx(1.0)
        assert timing.spread == pytest.approx(0.15)
        assert timing.reason == ""
    assert [passes.count(1), passes.count(256)] == [7, 7]


def test_rounds_that_differ_by_more_than_a_fifth_give_no_figure(small_vit, runtime, monkeypatch):
    hold_clock(monkeypatch, (1.0, 1.0, 1.0, 1.0, 1.21))
    monkeypatch.setattr(cost, "MOST_APART", 0.2)
    for timing in time_passes(small_vit(), 16, runtime).values():
        assert timing.latency_s is None
        assert timing.reason == "rounds differ by 21 %"


def test_rounds_go_on_until_five_in_a_row_agree(small_vit, runtime, monkeypatch):
    # Another program is busy during the first three.
    hold_clock(monkeypatch, (4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.1))
    monkeypatch.setattr(cost, "MOST_APART", 0.2)
    monkeypatch.setattr(cost, "BUDGET_S", 20.0)
    for timing in time_passes(small_vit(), 16, runtime).values():
        assert timing.latency_s == pytest.approx(1.0)


def test_a_round_of_a_small_batch_is_many_passes(small_vit, runtime, monkeypatch):
    hold_clock(monkeypatch, (1.0,) * 5)
    monkeypatch.setattr(cost, "ROUND_S", 5.0)  # ten times the second pass of the warm-up
    passes = []
    backbone = small_vit()
    backbone.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    found = time_passes(backbone, 16, runtime)
    assert found[1].latency_s == pytest.approx(0.1)
    assert passes.count(256) == 2 + 5 * 10


def test_the_precision_of_the_runtime_is_what_is_timed(small_vit):
    bf16 = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    dtypes = set()
    backbone = small_vit()
    backbone.model.head.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    time_passes(backbone, 16, bf16)
    assert dtypes == {torch.bfloat16}


def test_memory_of_a_cpu_is_not_guessed(small_vit, runtime):
    assert {each.peak_bytes for each in time_passes(small_vit(), 16, runtime).values()} == {None}


def test_a_batch_that_would_take_too_long_is_not_timed(small_vit, runtime, monkeypatch):
    monkeypatch.setattr(cost, "MAX_EXPECTED_S", 0.0)
    found = time_passes(small_vit(), 16, runtime)
    assert found[1].latency_s > 0
    assert found[256].latency_s is None
    assert found[256].reason == "would take more than 0 s"


def test_a_batch_that_does_not_fit_leaves_its_figures_open(small_vit, runtime):
    def no_room(module, args):
        if len(args[0]) == 256:
            raise torch.OutOfMemoryError

    backbone = small_vit()
    backbone.register_forward_pre_hook(no_room)
    found = time_passes(backbone, 16, runtime)
    assert found[1].latency_s > 0
    assert found[256].reason == "does not fit in memory"


def test_the_network_is_left_as_it_was(small_vit, runtime):
    backbone = small_vit(drop_path_rate=0.5).train()
    backbone.model.head.bias.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    time_passes(backbone, 16, runtime)
    assert all(module.training for module in backbone.modules())
    assert [parameter.requires_grad for parameter in backbone.parameters()] == trained
