"""How long and how much memory, said before the first step; the run stays as it is."""

from dataclasses import replace

import pytest
import torch

from smallvit.core import memory
from smallvit.core.errors import ConfigError, OutOfMemoryError
from smallvit.engine import forecast
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.config import LogConfig
from smallvit.engine.fit import fit
from smallvit.engine.forecast import Forecast, foresee
from smallvit.engine.log import read_metrics
from smallvit.engine.state import TrainState
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective

BASE, IMAGE = 10**9, 10**8  # bytes of a process, and of each image at once


@pytest.fixture(autouse=True)
def _every_run_is_long(monkeypatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_SAYING_S", 0.0)


@pytest.fixture
def machine(monkeypatch):
    """Return what makes a machine on which an image takes 0.1 GB, and so much is free."""

    def make(objective, free: int | None):
        at_once = [0]
        forward = objective.forward

        def noted(batch):
            at_once.append(len(batch))
            return forward(batch)

        monkeypatch.setattr(objective, "forward", noted)
        monkeypatch.setattr(memory, "start_peak", lambda: at_once.append(0) is None)
        monkeypatch.setattr(memory, "resident_bytes", lambda: BASE)
        monkeypatch.setattr(memory, "peak_bytes", lambda: BASE + IMAGE * at_once[-1])
        monkeypatch.setattr(memory, "free_bytes", lambda: free)
        return objective

    return make


def beside(plan, name):
    folder = plan.folder.parent / name
    (folder / "checkpoints").mkdir(parents=True)
    return replace(plan, folder=folder)


@pytest.mark.parametrize("stage", ["dino", "norms", "finetune"])
@pytest.mark.parametrize("stop", [None, 3])
def test_a_run_that_was_foreseen_is_the_same_bit_for_bit(
    stage, stop, plan, request, small_vit, view_batch
):
    """Weights, moments, batch norms, centre and draws; resumed too."""
    if stage == "norms":
        config = DinoConfig(num_prototypes=8, hidden_dim=16, bottleneck_dim=4, head_batch_norm=True)
        batches = view_batch

        def build():
            torch.manual_seed(0)
            return DinoObjective(small_vit(drop_path_rate=0.2), config)
    else:
        build = request.getfixturevalue(stage)
        batches = request.getfixturevalue("view_batch" if stage == "dino" else "labelled_batch")
    plans = plan, beside(plan, "foreseen")
    for each, foreseen in zip(plans, (False, True), strict=True):
        if stop is not None:
            fit(build(), batches, each, stop_after=stop, foreseen=foreseen)
        fit(build(), batches, each, resume=stop is not None, foreseen=foreseen)
    ours, theirs = (load_checkpoint(p.folder / "checkpoints" / "last.pt") for p in plans)
    for part in ("objective", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_length_and_memory_are_said_before_the_first_step(
    finetune, labelled_batch, plan, machine, caplog, told
):
    objective = machine(finetune(), 20 * BASE)
    fit(objective, labelled_batch, plan, evaluate=lambda: {"val/top1": 0.5}, foreseen=True)
    said = [record.getMessage() for record in caplog.records]
    first = next(i for i, line in enumerate(said) if line.startswith("test: about "))
    assert first < next(
        i for i, line in enumerate(said) if "step 1/8" in line or "step 4/8" in line
    )
    assert " for 8 steps of 0." in said[first]
    assert ", 2 evaluations on top; 1.4 GB of memory" in said[first]


def test_what_does_not_fit_is_cut_and_stays_the_step(
    finetune, labelled_batch, plan, machine, caplog, told
):
    plan = replace(plan, log=LogConfig(every_steps=1))
    cut = beside(plan, "cut")
    fit(finetune(), labelled_batch, plan)
    objective = machine(finetune(), 10**9 // 2)  # 1.4 GB are asked for, 1.5 GB are there
    result = fit(objective, labelled_batch, cut, foreseen=True)
    assert result.micro_batch == 2
    assert "4 images at once need about 1.4 GB of memory, and there are 1.5 GB" in caplog.text
    assert "--micro-batch 2" in caplog.text
    rows, whole = (read_metrics(each.folder / "metrics.jsonl") for each in (cut, plan))
    for row, other in zip(rows, whole, strict=True):
        for name in ("train/loss", "opt/grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)


def test_a_resumed_run_keeps_its_micro_batch_where_there_is_more_room(
    finetune, labelled_batch, plan, machine
):
    fit(machine(finetune(), 10**9 // 2), labelled_batch, plan, stop_after=2, foreseen=True)
    objective = machine(finetune(), 20 * BASE)
    assert fit(objective, labelled_batch, plan, resume=True, foreseen=True).micro_batch == 2


def test_a_resumed_run_stays_whole_as_long_as_that_fits(finetune, labelled_batch, plan, machine):
    """1.4 GB are asked for, 1.5 GB are there: a new run is cut, for what others may take."""
    fit(machine(finetune(), 20 * BASE), labelled_batch, plan, stop_after=2, foreseen=True)
    objective = machine(finetune(), 10**9 // 2)
    assert fit(objective, labelled_batch, plan, resume=True, foreseen=True).micro_batch is None


def test_a_resumed_run_is_cut_where_it_no_longer_fits(finetune, labelled_batch, plan, machine):
    fit(machine(finetune(), 20 * BASE), labelled_batch, plan, stop_after=2, foreseen=True)
    objective = machine(finetune(), 3 * 10**8)
    assert fit(objective, labelled_batch, plan, resume=True, foreseen=True).micro_batch == 2


def test_a_forecast_that_runs_out_of_memory_leaves_it_to_the_steps(
    finetune, labelled_batch, plan, monkeypatch, caplog, told
):
    objective = finetune()
    forward = objective.forward

    def limited(batch):
        if len(batch) > 2:
            raise MemoryError
        return forward(batch)

    monkeypatch.setattr(objective, "forward", limited)
    result = fit(objective, labelled_batch, plan, foreseen=True)
    assert (result.step, result.micro_batch) == (8, 2)
    assert "out of memory with 4 images at once" in caplog.text


def test_where_the_peak_cannot_be_told_nothing_is_planned(
    finetune, labelled_batch, plan, machine, monkeypatch, caplog, told
):
    """It would be that of all that the process has done before."""
    objective = machine(finetune(), 10**9 // 2)
    monkeypatch.setattr(memory, "start_peak", lambda: False)
    assert fit(objective, labelled_batch, plan, foreseen=True).micro_batch is None
    line = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("test: about"))
    assert "memory" not in line


def test_a_batch_that_must_stay_whole_is_refused_with_one_that_fits(
    finetune, labelled_batch, plan, machine
):
    objective = machine(finetune(), 10**9 // 3)
    objective.compares_images = True
    with pytest.raises(ConfigError, match=r"4 images at once need .*--batch-size [12] would fit"):
        fit(objective, labelled_batch, plan, foreseen=True)


def test_two_images_that_cannot_fit_are_refused_before_the_first_step(
    finetune, labelled_batch, plan, machine
):
    objective = machine(finetune(), 10**8)
    with pytest.raises(OutOfMemoryError, match=r"2 still need 1.2 GB: use a smaller model"):
        fit(objective, labelled_batch, plan, foreseen=True)
    assert not (plan.folder / "checkpoints" / "last.pt").exists()


def test_where_the_system_does_not_say_nothing_is_said_of_memory(
    finetune, labelled_batch, plan, machine, caplog, told
):
    result = fit(machine(finetune(), None), labelled_batch, plan, foreseen=True)
    assert result.micro_batch is None
    line = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("test: about"))
    assert "memory" not in line


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"steps": 3000, "evaluations": 40, "step_s": 57.0, "most_bytes": 15 * 10**9},
            "about 47 h 30 min for 3,000 steps of 57 s, 40 evaluations on top; 15.0 GB of memory",
        ),
        (
            {"steps": 100, "evaluations": 2, "step_s": 0.25, "evaluation_s": 30.0},
            "about 1 min 25 s for 100 steps of 0.25 s and 2 evaluations",
        ),
        ({"steps": 1, "evaluations": 0, "step_s": 12.0}, "about 12 s for 1 step of 12 s"),
    ],
)
def test_a_forecast_is_one_line_in_hours_and_minutes(settings, text):
    assert str(Forecast(**settings)) == text


def test_what_a_method_freezes_at_first_is_left_to_be_trained(small_vit, view_batch, plan):
    """Prototypes are frozen in the first pass alone; the run trains what it would have."""
    config = DinoConfig(num_prototypes=8, hidden_dim=16, bottleneck_dim=4)
    objective = DinoObjective(small_vit(), config)
    before = [parameter.requires_grad for parameter in objective.parameters()]
    assert foresee(TrainState(objective, plan), view_batch, evaluations=0) is not None
    assert [parameter.requires_grad for parameter in objective.parameters()] == before
