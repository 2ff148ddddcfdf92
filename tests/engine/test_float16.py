"""Float16: a step that overflows is taken again at a smaller scale, and advances nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from smallvit.core.errors import DivergedError
from smallvit.core.objective import AbstractObjective, StepOutput
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.config import LogConfig, RuntimeConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.runtime import open_runtime
from smallvit.engine.state import TrainState

FACTOR = 100.0  # of the gradient in float16, whose largest number is 65504


class Steep(AbstractObjective[Tensor]):
    """A loss whose gradient overflows float16 at scales above 655."""

    def __init__(self, factor: float = FACTOR) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.factor = factor
        self.after: list[float] = []

    def forward(self, batch: Tensor) -> StepOutput:
        self.norm(batch)
        return StepOutput(loss=(self.weight.half() * self.factor).sum().float())

    def after_step(self, progress: float) -> None:
        self.after.append(progress)


def batches(step: int) -> Tensor:
    return torch.full((4, 1), float(step)) + torch.arange(4)[:, None]


@pytest.fixture
def half(plan):
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="fp16"))
    return replace(plan, runtime=runtime, log=LogConfig(every_steps=1))


def test_a_skipped_step_advances_nothing(half):
    """From 2**16 it takes seven halvings to 512, below 65504 / 100."""
    objective = Steep()
    result = fit(objective, batches, half)
    assert result.skipped == 7
    assert result.step == half.total_steps
    assert len(objective.after) == half.total_steps
    assert objective.norm.num_batches_tracked == half.total_steps
    rows = read_metrics(half.folder / "metrics.jsonl")
    assert [row["opt/loss_scale"] for row in rows] == [512.0] * half.total_steps
    assert rows[0]["opt/skipped"] == 7
    assert rows[0]["opt/grad_norm"] == pytest.approx(FACTOR)


def test_skipping_leaves_the_run_that_never_overflowed(half):
    """The rate of every step, moments and statistics included."""
    calm = replace(half, folder=half.folder.with_name("calm"))
    (calm.folder / "checkpoints").mkdir(parents=True)
    fit(Steep(), batches, half)
    start = TrainState(Steep(), calm)
    start.scaler.load_state_dict(start.scaler.state_dict() | {"scale": 512.0})
    start.save("last.pt")
    assert fit(Steep(), batches, calm, resume=True).skipped == 0
    ours, theirs = (
        load_checkpoint(each.folder / "checkpoints" / "last.pt") for each in (half, calm)
    )
    torch.testing.assert_close(ours["objective"], theirs["objective"], rtol=0, atol=0)
    torch.testing.assert_close(
        ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0
    )


def test_the_scale_is_part_of_the_checkpoint(half):
    broken = replace(half, folder=half.folder.with_name("broken"))
    (broken.folder / "checkpoints").mkdir(parents=True)
    fit(Steep(), batches, half)
    fit(Steep(), batches, broken, stop_after=3)
    assert fit(Steep(), batches, broken, resume=True).skipped == 7
    ours, theirs = (
        load_checkpoint(each.folder / "checkpoints" / "last.pt") for each in (half, broken)
    )
    assert ours["scaler"] == theirs["scaler"]
    torch.testing.assert_close(ours["objective"], theirs["objective"], rtol=0, atol=0)


def test_what_overflows_at_any_scale_has_diverged(half):
    objective = Steep(factor=float("inf"))
    with pytest.raises(DivergedError, match="at step 0"):
        fit(objective, batches, half)
    assert objective.weight.item() == 1
    assert not (half.folder / "checkpoints" / "last.pt").exists()


def test_a_real_stage_learns_in_float16_as_in_float32(finetune, labelled_batch, half, plan):
    """Losses of eight steps, to the digits that float16 has."""
    rows = []
    for each, name in ((half, "half"), (replace(plan, log=half.log), "full")):
        each = replace(each, folder=plan.folder.with_name(name))
        (each.folder / "checkpoints").mkdir(parents=True)
        fit(finetune(), labelled_batch, each)
        rows.append(read_metrics(each.folder / "metrics.jsonl"))
    for ours, theirs in zip(*rows, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.02)
        assert ours["train/loss"] != theirs["train/loss"]
