import logging
from dataclasses import replace

import pytest
import torch

from smallvit.engine.config import RuntimeConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.runtime import compiled_networks, open_runtime, say_precision


@pytest.fixture(autouse=True)
def usual_operations():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", None), ("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_cpu_takes_the_precision_that_is_asked_for_and_float32_else(precision, dtype):
    runtime = open_runtime(RuntimeConfig(device="cpu", precision=precision))
    assert runtime.autocast_dtype is dtype
    assert runtime.precision == ("fp32" if precision == "auto" else precision)


def test_deterministic_mode_is_switched_on_and_off_by_the_run(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    open_runtime(RuntimeConfig(device="cpu", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    open_runtime(RuntimeConfig(device="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_networks_are_compiled_on_request_and_on_a_cpu_not_by_themselves():
    assert not open_runtime(RuntimeConfig(device="cpu")).compiled
    assert open_runtime(RuntimeConfig(device="cpu", compile="on")).compiled


def test_every_pass_of_every_network_is_compiled_inside_alone(dino, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f.__name__) or f)
    objective = dino()
    keys = list(objective.state_dict())
    with compiled_networks(objective):
        assert sorted(compiled) == sorted(2 * ["embed", "encode", "encode_visible"])
        assert list(objective.state_dict()) == keys
        assert "encode" in vars(objective.student)
    assert not {"embed", "encode", "encode_visible"} & vars(objective.student).keys()


def test_a_compiled_run_is_the_plain_one(dino, view_batch, plan, monkeypatch, without_shape_checks):
    """Traced by dynamo in whole, run by its eager backend: a test has no time for a compiler."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: plain(f, backend="eager", **k))
    rows = []
    for name, compiled in (("plain", False), ("compiled", True)):
        each = replace(
            plan,
            folder=plan.folder.with_name(name),
            runtime=replace(plan.runtime, compiled=compiled),
            total_steps=3,
        )
        (each.folder / "checkpoints").mkdir(parents=True)
        fit(dino(), view_batch, each, evaluate=lambda: {"val/top1": 0.0})
        rows.append(read_metrics(each.folder / "metrics.jsonl"))
    for ours, theirs in zip(*rows, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)


@pytest.mark.parametrize(("precision", "said"), [("auto", True), ("fp32", False)])
def test_a_cpu_with_bfloat16_says_so_where_nobody_chose(precision, said, monkeypatch, caplog):
    logger = logging.getLogger("smallvit")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "smallvit")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    say_precision(RuntimeConfig(device="cpu", precision=precision))
    assert ("--precision bf16" in caplog.text) is said
