import logging
import os
import signal
from dataclasses import replace

import pytest
import torch

from smallvit.core.errors import ConfigError, DataError, DivergedError, InterruptedRunError
from smallvit.data.batches import LabeledBatch
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint
from smallvit.engine.config import LogConfig, ScheduleConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.plan import FitPlan


def state_of(plan: FitPlan, name: str = "last.pt") -> dict:
    return load_checkpoint(plan.folder / "checkpoints" / name)


def beside(plan: FitPlan, name: str) -> FitPlan:
    """The same plan in another folder."""
    folder = plan.folder.parent / name
    (folder / "checkpoints").mkdir(parents=True)
    return replace(plan, folder=folder)


def assert_same_end(first: FitPlan, second: FitPlan) -> None:
    """Weights, moments, step counts and schedule: every bit."""
    ours, theirs = state_of(first), state_of(second)
    assert ours["result"]["step"] == theirs["result"]["step"]
    for part in ("objective", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


@pytest.fixture(params=["dino", "finetune"])
def stage(request):
    """An objective's builder and its batches."""
    batches = {"dino": "view_batch", "finetune": "labelled_batch"}[request.param]
    return request.getfixturevalue(request.param), request.getfixturevalue(batches)


@pytest.mark.exact
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_ends_like_an_unbroken_one(stage, plan, stop):
    """Stochastic depth, moments, centre, momentum teacher and prototypes, thawed at step 4."""
    build, batches = stage
    fit(build(), batches, plan)
    broken = beside(plan, "broken")
    fit(build(), batches, broken, stop_after=stop)
    assert state_of(broken)["result"]["step"] == stop
    torch.manual_seed(99)
    torch.randn(7)  # another process, another state of torch's generator
    result = fit(build(), batches, broken, resume=True)
    assert result.step == 8
    assert_same_end(plan, broken)


@pytest.mark.exact
def test_two_runs_are_the_same(stage, plan):
    build, batches = stage
    fit(build(), batches, plan)
    again = beside(plan, "again")
    fit(build(), batches, again)
    assert_same_end(plan, again)


def test_the_plan_says_how_gradients_are_clipped(finetune, labelled_batch, plan):
    """Clipped by parameter, a run ends elsewhere than clipped globally."""
    other = beside(plan, "parameter")
    plan = replace(plan, optim=replace(plan.optim, grad_clip_norm=0.01))
    other = replace(other, optim=replace(plan.optim, grad_clip_mode="parameter"))
    objectives = [finetune().eval() for _ in range(2)]
    for objective, mine in zip(objectives, (plan, other), strict=True):
        fit(objective, labelled_batch, mine, stop_after=1)
    norms = [[p.grad.norm().item() for p in o.parameters()] for o in objectives]
    assert sum(n**2 for n in norms[0]) ** 0.5 == pytest.approx(0.01, rel=1e-3)
    assert max(norms[1]) == pytest.approx(0.01, rel=1e-3)
    assert sum(n**2 for n in norms[1]) ** 0.5 > 0.02


def test_a_backbones_own_rate_is_logged_beside_that_of_the_heads(finetune, labelled_batch, plan):
    other = beside(plan, "one-rate")
    scaled = replace(plan, optim=replace(plan.optim, backbone_lr_scale=0.25))
    for each in (scaled, other):
        fit(finetune(), labelled_batch, each, stop_after=3)
    (row,) = read_metrics(scaled.folder / "metrics.jsonl")
    assert row["opt/lr_backbone"] == pytest.approx(row["opt/lr"] / 4, rel=0.05)
    (row,) = read_metrics(other.folder / "metrics.jsonl")
    assert "opt/lr_backbone" not in row


def test_training_lowers_the_loss(finetune, labelled_batch, plan):
    plan = replace(plan, total_steps=40, log=LogConfig(every_steps=10))
    fit(finetune(), lambda step: labelled_batch(step % 2), plan)
    losses = [row["train/loss"] for row in read_metrics(plan.folder / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_a_plan_without_a_folder_writes_nothing(finetune, labelled_batch, plan, tmp_path):
    plan = replace(plan, folder=None)
    assert fit(finetune(), labelled_batch, plan, stop_after=1).step == 1
    assert list((tmp_path / "run").rglob("*.*")) == []


@pytest.fixture
def losses(finetune, labelled_batch, plan) -> list[float]:
    """The loss of each step of the plan."""
    every = beside(plan, "every")
    fit(finetune(), labelled_batch, replace(every, log=LogConfig(every_steps=1)))
    return [row["train/loss"] for row in read_metrics(every.folder / "metrics.jsonl")]


def assert_means(plan: FitPlan, losses: list[float], spans: list[tuple[int, int]]) -> None:
    """Each line is the mean of the steps from ``start`` to ``end``."""
    rows = read_metrics(plan.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [end for _, end in spans]
    means = [sum(losses[start:end]) / (end - start) for start, end in spans]
    assert [row["train/loss"] for row in rows] == pytest.approx(means)


def test_a_log_line_is_the_mean_since_the_one_before(finetune, labelled_batch, plan, losses):
    """The last line is of two steps, fewer than a line is of: those of the line before count."""
    fit(finetune(), labelled_batch, plan)
    assert_means(plan, losses, [(0, 3), (3, 6), (3, 8)])
    rows = read_metrics(plan.folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0.75, 1.5, 2.0]


@pytest.mark.parametrize("checkpoint_steps", [None, 5])
def test_a_line_soon_after_another_is_no_mean_of_few_batches(
    finetune, labelled_batch, plan, losses, checkpoint_steps
):
    """An evaluation or a checkpoint one step after a line: no saw-tooth in the curves."""
    log = LogConfig(every_steps=3, checkpoint_steps=checkpoint_steps)
    fit(finetune(), labelled_batch, replace(plan, log=log), evaluate=lambda: {"val/top1": 0.5})
    spans = [(0, 3), (0, 4), (3, 6), (4, 8)]
    if checkpoint_steps:
        spans = [(0, 3), (0, 4), (0, 5), (3, 6), (5, 8)]
    assert_means(plan, losses, spans)


def test_lines_of_evaluations_nearer_than_lines_are_of_their_own_steps(
    finetune, labelled_batch, plan, losses
):
    plan = replace(plan, schedule=replace(plan.schedule, eval_epochs=0.5), log=LogConfig())
    fit(finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": 0.5})
    assert_means(plan, losses, [(0, 2), (2, 4), (4, 6), (6, 8)])


@pytest.mark.parametrize("stop", [3, 5])
def test_the_first_line_of_a_resumed_run_counts_the_steps_before_it_was_stopped(
    finetune, labelled_batch, plan, losses, stop
):
    fit(finetune(), labelled_batch, plan, stop_after=stop)
    fit(finetune(), labelled_batch, plan, resume=True)
    spans = [(0, 3), (3, 6), (3, 8)] if stop == 3 else [(0, 3), (0, 5), (3, 6), (5, 8)]
    assert_means(plan, losses, spans)


def test_people_are_told_the_mean_since_they_were_told_before(
    finetune, labelled_batch, plan, losses, told
):
    """Whatever was written to metrics.jsonl in between."""
    plan = replace(plan, log=LogConfig(every_steps=3, checkpoint_steps=2))
    fit(finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": 0.5})
    means = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert [line.partition("loss ")[2][:5] for line in told()] == [f"{m:.3f}" for m in means]


def test_a_line_at_once_does_not_count_its_steps_twice(
    finetune, labelled_batch, plan, losses, told, monkeypatch
):
    """In a long interval people are told more often than metrics.jsonl is written."""
    monkeypatch.setattr("smallvit.engine.log.QUIET_S", 0.0)
    monkeypatch.setattr("smallvit.engine.log.TOLD_S", 0.0)
    monkeypatch.setattr("smallvit.engine.log.TrainLog._say_at_work", lambda _: None)
    fit(finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": 0.5})
    said = {int(line.partition("step ")[2].partition("/")[0]): line for line in told()}
    assert sorted(said) == [1, 2, 4, 5, 7, 8]  # 3 and 6 are written
    spans = {1: (0, 1), 2: (1, 2), 4: (2, 4), 5: (4, 5), 7: (5, 7), 8: (7, 8)}
    for step, (start, end) in spans.items():
        mean = sum(losses[start:end]) / (end - start)
        assert f"loss {mean:.3f}" in said[step]
    assert_means(plan, losses, [(0, 3), (0, 4), (3, 6), (4, 8)])


def test_best_follows_the_highest_metric_and_nan_never_wins(finetune, labelled_batch, plan):
    scores = iter([float("nan"), 0.3, 0.5, float("nan"), 0.4, 0.5, 0.1, 0.2])
    plan = replace(
        plan, select_on="val/top1", schedule=ScheduleConfig(epochs=2.0, eval_epochs=0.25)
    )
    result = fit(finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": next(scores)})
    assert result.best == {"val/top1": 0.5, "step": 3}
    assert result.metrics == {"val/top1": 0.2}
    assert state_of(plan, "best.pt")["result"]["step"] == 3
    assert state_of(plan)["result"]["step"] == 8


def test_best_is_remembered_over_a_resumption(finetune, labelled_batch, plan):
    schedule = ScheduleConfig(epochs=2.0, eval_epochs=0.25)
    plan = replace(plan, select_on="val/top1", schedule=schedule)
    first, second = iter([0.3, 0.9, 0.4]), iter([0.5, 0.6, 0.7, 0.8, 0.85])
    fit(
        finetune(),
        labelled_batch,
        plan,
        evaluate=lambda: {"val/top1": next(first)},
        stop_after=3,
    )
    result = fit(
        finetune(),
        labelled_batch,
        plan,
        evaluate=lambda: {"val/top1": next(second)},
        resume=True,
    )
    assert result.best == {"val/top1": 0.9, "step": 2}
    assert state_of(plan, "best.pt")["result"]["step"] == 2


@pytest.mark.parametrize(("eval_epochs", "steps"), [(1.0, [4, 8]), (0.75, [3, 6, 8]), (5.0, [8])])
def test_evaluation_is_due_by_epochs_and_at_the_end(
    finetune, labelled_batch, plan, eval_epochs, steps
):
    plan = replace(plan, schedule=ScheduleConfig(epochs=2.0, eval_epochs=eval_epochs))
    fit(finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": 0.5})
    rows = read_metrics(plan.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/top1" in row] == steps


def test_evaluation_sees_the_objective_in_evaluation_mode(finetune, labelled_batch, plan):
    objective, modes = finetune(), []

    def evaluate() -> dict[str, float]:
        modes.append(objective.training)
        return {"val/top1": 0.5}

    fit(objective, labelled_batch, plan, evaluate=evaluate)
    assert modes == [False, False]


def test_sigterm_saves_and_the_run_continues_from_there(finetune, labelled_batch, plan):
    before = signal.getsignal(signal.SIGTERM)
    fit(finetune(), labelled_batch, plan)
    broken = beside(plan, "broken")

    def terminated(step: int) -> LabeledBatch:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return labelled_batch(step)

    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 3 of 8") as info:
        fit(finetune(), terminated, broken)
    assert info.value.exit_code == 143
    assert state_of(broken)["result"]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) == before
    fit(finetune(), labelled_batch, broken, resume=True)
    assert_same_end(plan, broken)


def test_the_message_of_an_interrupted_run_says_how_to_continue(finetune, labelled_batch, plan):
    def interrupted(step: int) -> LabeledBatch:
        os.kill(os.getpid(), signal.SIGINT)
        return labelled_batch(step)

    with pytest.raises(InterruptedRunError, match=f"--resume {plan.folder}") as info:
        fit(finetune(), interrupted, plan)
    assert info.value.exit_code == 130


@pytest.mark.parametrize("every", [1, 20])
def test_divergence_names_the_first_bad_step(finetune, labelled_batch, plan, every):
    """However late the host looks, and whatever came after."""

    def spoiled(step: int) -> LabeledBatch:
        batch = labelled_batch(step)
        if step in (3, 5):
            batch = replace(batch, images=torch.full_like(batch.images, float("nan")))
        return batch

    objective = finetune()
    plan = replace(plan, log=LogConfig(every_steps=every))
    with pytest.raises(DivergedError, match="became NaN or infinite at step 3 ") as info:
        fit(objective, spoiled, plan)
    assert info.value.step == 3
    assert all(bool(p.isfinite().all()) for p in objective.parameters())
    assert not (plan.folder / "checkpoints" / "last.pt").exists()


def test_the_last_good_checkpoint_survives_divergence(dino, view_batch, plan):
    def spoiled(step: int):
        batch = view_batch(step)
        return replace(batch, global_views=batch.global_views * (float("inf") if step > 4 else 1))

    plan = replace(plan, log=LogConfig(every_steps=20, checkpoint_steps=2))
    with pytest.raises(DivergedError, match="at step 5 "):
        fit(dino(), spoiled, plan)
    assert state_of(plan)["result"]["step"] == 4


def test_settings_of_another_run_are_not_resumed(finetune, labelled_batch, plan):
    fit(finetune(), labelled_batch, plan, stop_after=1)
    other = replace(plan, identity={"settings": "{'lr': 1}"})
    with pytest.raises(ConfigError, match="was written with other settings"):
        fit(finetune(), labelled_batch, other, resume=True)


def test_a_resumed_run_makes_the_evaluation_that_was_not_made(finetune, labelled_batch, plan):
    """As after another process was lost in it: the state of the step was saved, no scores."""
    plan = replace(plan, select_on="val/top1")

    def evaluate() -> dict[str, float]:
        return {"val/top1": 0.5}

    fit(finetune(), labelled_batch, plan, evaluate=evaluate)
    path = plan.folder / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    del state["format"]
    state["result"] |= {"evaluated": 4, "best": {}, "metrics": {}}
    save_checkpoint(path, state)
    (plan.folder / "metrics.jsonl").unlink()
    result = fit(finetune(), labelled_batch, plan, evaluate=evaluate, resume=True)
    assert result.best == {"val/top1": 0.5, "step": 8}
    assert [row["val/top1"] for row in read_metrics(plan.folder / "metrics.jsonl")] == [0.5]


@pytest.mark.parametrize("spoil", ["cut", "other"])
def test_best_weights_that_are_not_those_of_the_scores_are_not_trusted(
    finetune, labelled_batch, plan, spoil, caplog, monkeypatch
):
    logger = logging.getLogger("smallvit")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    plan = replace(plan, select_on="val/top1", schedule=replace(plan.schedule, eval_epochs=0.5))
    scores = iter([0.9, 0.1, 0.2, 0.3])
    fit(
        finetune(),
        labelled_batch,
        plan,
        evaluate=lambda: {"val/top1": next(scores)},
        stop_after=4,
    )
    best = plan.folder / "checkpoints" / "best.pt"
    if spoil == "cut":
        best.write_bytes(best.read_bytes()[:1000])
    else:
        state = load_checkpoint(best)
        del state["format"]
        state["result"]["best"]["step"] = 3
        save_checkpoint(best, state)
    result = fit(
        finetune(), labelled_batch, plan, evaluate=lambda: {"val/top1": next(scores)}, resume=True
    )
    assert result.best == {"val/top1": 0.3, "step": 8}
    assert "the best of the evaluations to come is taken" in caplog.text


def test_an_evaluation_whose_best_weights_could_not_be_written_is_made_again(
    finetune, labelled_batch, plan, monkeypatch
):
    plan = replace(plan, select_on="val/top1", schedule=replace(plan.schedule, eval_epochs=0.5))
    full = [True]

    def write(path, state):
        if path.name == "best.pt" and full:
            full.clear()
            raise DataError("the disk is full")
        save_checkpoint(path, state)

    def evaluate():
        return {"val/top1": 0.5}

    monkeypatch.setattr("smallvit.engine.state.save_checkpoint", write)
    with pytest.raises(DataError, match="the disk is full"):
        fit(finetune(), labelled_batch, plan, evaluate=evaluate)
    result = fit(finetune(), labelled_batch, plan, evaluate=evaluate, resume=True)
    first = read_metrics(plan.folder / "metrics.jsonl")[0]["step"]
    assert result.best == {"val/top1": 0.5, "step": first}
    assert state_of(plan, "best.pt")["result"]["best"] == result.best
