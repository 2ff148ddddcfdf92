import pytest
import torch

from smallvit.bench import cost
from smallvit.bench.cost import measure_cost
from smallvit.engine.runtime import Runtime, RuntimeConfig, open_runtime
from smallvit.models.measure import measure


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)


@pytest.fixture
def runtime() -> Runtime:
    return open_runtime(RuntimeConfig(device="cpu", precision="fp32"))


def test_counts_are_those_of_the_model_table(small_vit, runtime):
    backbone = small_vit()
    facts = measure(backbone, 16)
    found = measure_cost(backbone, 16, runtime)
    assert (found["params"], found["macs"]) == (facts.parameters, facts.macs)


def test_speed_is_the_batch_over_its_time(small_vit, runtime):
    found = measure_cost(small_vit(), 16, runtime)
    for batch_size in (1, 256):
        seconds = found[f"latency_ms_{batch_size}"] / 1000
        assert found[f"images_per_s_{batch_size}"] == pytest.approx(batch_size / seconds)


def test_the_median_of_the_rounds_is_taken_after_a_warm_up(small_vit, runtime, monkeypatch):
    # A clock that stands still but for the rounds, which take 1, 5 and 2 s; the warm-up is not
    # timed.
    ticks = iter([0, 1, 10, 15, 20, 22] * 2)
    monkeypatch.setattr(cost, "MAX_EXPECTED_S", 1000.0)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    passes = []
    backbone = small_vit()
    backbone.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    found = measure_cost(backbone, 16, runtime)
    assert found["latency_ms_1"] == found["latency_ms_256"] == 2000
    assert [passes.count(1), passes.count(256)] == [4 + 1, 4]  # one image counts the operations


def test_what_it_was_measured_with_is_named(small_vit):
    bf16 = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    dtypes = set()
    backbone = small_vit()
    backbone.model.head.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    found = measure_cost(backbone, 16, bf16)
    assert torch.bfloat16 in dtypes
    assert (found["device"], found["precision"]) == ("cpu", "bf16")
    assert found["threads"] == torch.get_num_threads()


def test_memory_of_a_cpu_is_not_guessed(small_vit, runtime):
    assert measure_cost(small_vit(), 16, runtime)["peak_memory_mib"] is None


def test_a_batch_that_would_take_too_long_is_not_timed(small_vit, runtime, monkeypatch):
    monkeypatch.setattr(cost, "MAX_EXPECTED_S", 0.0)
    found = measure_cost(small_vit(), 16, runtime)
    assert found["latency_ms_1"] > 0
    assert found["latency_ms_256"] is None
    assert found["images_per_s_256"] is None


def test_a_batch_that_does_not_fit_leaves_its_figures_open(small_vit, runtime):
    def no_room(module, args):
        if len(args[0]) == 256:
            raise torch.OutOfMemoryError

    backbone = small_vit()
    backbone.register_forward_pre_hook(no_room)
    found = measure_cost(backbone, 16, runtime)
    assert found["images_per_s_1"] > 0
    assert found["images_per_s_256"] is None


def test_the_network_is_left_as_it_was(small_vit, runtime):
    backbone = small_vit(drop_path_rate=0.5).train()
    backbone.model.head.bias.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    measure_cost(backbone, 16, runtime)
    assert all(module.training for module in backbone.modules())
    assert [parameter.requires_grad for parameter in backbone.parameters()] == trained
