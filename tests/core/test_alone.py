"""What the rest of the process has set changes no number of ours, and is there again after it."""

import threading
from contextlib import contextmanager

import pytest
import torch

from smallvit.core.alone import FRESH_SEED, alone


@alone()
def compute() -> list[float]:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    loss = (weight @ torch.ones(4)).square().sum()
    loss.backward()
    assert weight.grad is not None
    return [*weight.flatten().tolist(), *weight.grad.flatten().tolist()]


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CALLERS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another dtype": double,
    "another device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_what_the_caller_has_set_changes_nothing(caller):
    expected = compute()
    torch.rand(3)
    with CALLERS[caller]():
        assert compute() == expected


def test_the_callers_settings_are_there_again_after_it():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with double():
        compute()
        assert torch.get_default_dtype() == torch.float64
        assert torch.rand(1, dtype=torch.float32) == expected


def test_another_thread_computes_the_same_one_after_the_other():
    expected, found, inside = compute(), [], []

    @alone()
    def slow() -> list[float]:
        inside.append(1)
        assert len(inside) == 1
        numbers = compute()  # a function that calls another waits for nobody
        inside.pop()
        return numbers

    threads = [threading.Thread(target=lambda: found.append(slow())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_a_gpu_that_is_first_used_in_it_has_the_callers_seed_after_it(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compute()
    assert seeds[-2:] == [FRESH_SEED, 5]
    assert torch.equal(torch.rand(3), expected)
