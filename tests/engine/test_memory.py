"""Too little memory: the step is cut until it fits, and stays the same."""

import logging
from dataclasses import dataclass, field, replace

import pytest
import torch

from smallvit.cli.app import main
from smallvit.core.errors import ConfigError, OutOfMemoryError
from smallvit.engine.checkpoint import load_checkpoint
from smallvit.engine.config import LogConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.memory import is_out_of_memory
from smallvit.finetuning.config import SupervisedConfig
from smallvit.finetuning.objective import FinetuneObjective

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


def short_of_memory(objective, monkeypatch, most: int, error: Exception):
    """Let a forward pass fail on more images than that."""
    forward = objective.forward

    def limited(batch):
        if len(batch) > most:
            raise error
        return forward(batch)

    monkeypatch.setattr(objective, "forward", limited)
    return objective


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError(CPU_SAYS)])
def test_a_step_that_does_not_fit_is_repeated_in_micro_batches(
    finetune, labelled_batch, plan, monkeypatch, caplog, error
):
    """Losses and gradients are those of the whole batch, but for rounding; it is said once."""
    logger = logging.getLogger("smallvit")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    plan = replace(plan, log=LogConfig(every_steps=1))
    short = replace(plan, folder=plan.folder.with_name("short"))
    (short.folder / "checkpoints").mkdir(parents=True)
    fit(finetune(), labelled_batch, plan)
    objective = short_of_memory(finetune(), monkeypatch, 2, error)
    result = fit(objective, labelled_batch, short)
    assert result.micro_batch == 2
    said = {record.message for record in caplog.records if "out of memory" in record.message}
    assert len(said) == 1
    assert "with 4 images at once: the step is repeated with micro-batches of 2" in said.pop()
    rows, whole = (read_metrics(each.folder / "metrics.jsonl") for each in (short, plan))
    for row, other in zip(rows, whole, strict=True):
        for name in ("train/loss", "train/loss_token", "opt/grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)


def test_a_resumed_run_begins_with_the_micro_batch_that_fitted(
    finetune, labelled_batch, plan, monkeypatch
):
    error = torch.OutOfMemoryError("no")
    fit(short_of_memory(finetune(), monkeypatch, 2, error), labelled_batch, plan, stop_after=2)
    assert load_checkpoint(plan.folder / "checkpoints" / "last.pt")["result"]["micro_batch"] == 2
    assert fit(finetune(), labelled_batch, plan, resume=True).micro_batch == 2


def test_batches_that_are_compared_are_not_cut(finetune, labelled_batch, plan, monkeypatch):
    objective = short_of_memory(finetune(), monkeypatch, 2, torch.OutOfMemoryError("no"))
    objective.compares_images = True
    with pytest.raises(ConfigError, match=r"compares the images .* 4 are too many .*--batch-size"):
        fit(objective, labelled_batch, plan)
    asked = replace(plan, runtime=replace(plan.runtime, micro_batch=2))
    with pytest.raises(
        ConfigError, match=r"runtime.micro_batch 2 would cut them: leave --micro-batch out"
    ):
        fit(objective, labelled_batch, asked)


def test_two_images_that_do_not_fit_end_with_the_remedy(
    finetune, labelled_batch, plan, monkeypatch
):
    objective = short_of_memory(finetune(), monkeypatch, 1, torch.OutOfMemoryError("no"))
    with pytest.raises(OutOfMemoryError, match="2 images at once: use a smaller model"):
        fit(objective, labelled_batch, plan)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError(CPU_SAYS), True),
        (RuntimeError("shapes do not fit"), False),
        (OutOfMemoryError("said already"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_the_command_line_says_how_to_need_less(monkeypatch, capsys):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("smallvit.runs.request.resolve", run_out)
    assert main(["pretrain"]) == 1
    assert "--batch-size" in capsys.readouterr().err


@dataclass
class Numbers:
    """Four numbers as a batch."""

    values: torch.Tensor = field(default_factory=lambda: torch.arange(4.0)[:, None])

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows) -> "Numbers":
        return Numbers(self.values[rows])


def test_buffers_of_a_repeated_step_are_as_before(plan, monkeypatch):
    """A batch norm counts the step once, though its first forward pass was thrown away."""
    from smallvit.core.objective import AbstractObjective, StepOutput

    class Counting(AbstractObjective):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)
            self.tries = 0

        def forward(self, batch) -> StepOutput:
            out = self.norm(batch.values)
            self.tries += 1
            if self.tries == 1:
                raise torch.OutOfMemoryError("no")
            return StepOutput(loss=out.square().mean())

    objective = Counting()
    plan = replace(plan, total_steps=1, folder=None)
    fit(objective, lambda _: Numbers(), plan)
    assert objective.tries == 3  # once in vain, then in two halves
    assert objective.norm.num_batches_tracked == 2


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointed_blocks_drop_the_same_when_they_are_computed_again(
    small_vit, labelled_batch, plan, drop_path
):
    """Gradients of micro-batches are those of the whole batch, not of other masks."""
    norms = []
    for micro_batch in (None, 2):
        backbone = small_vit(drop_path_rate=drop_path)
        backbone.set_grad_checkpointing()
        objective = FinetuneObjective(backbone, num_classes=5, config=SupervisedConfig())
        runtime = replace(plan.runtime, micro_batch=micro_batch, grad_checkpointing=True)
        folder = plan.folder.with_name(f"cut-{micro_batch}")
        (folder / "checkpoints").mkdir(parents=True)
        each = replace(plan, runtime=runtime, folder=folder, log=LogConfig(every_steps=1))
        fit(objective, labelled_batch, each, stop_after=3)
        norms.append([row["opt/grad_norm"] for row in read_metrics(folder / "metrics.jsonl")])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
