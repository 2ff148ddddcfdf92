import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smallvit.data.batches import LabeledBatch, TokenBox, ViewBatch
from smallvit.engine.config import LogConfig, OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import open_runtime
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective


@pytest.fixture
def told(monkeypatch, caplog) -> Callable[[], list[str]]:
    """Return the lines that people were told, in order."""
    logger = logging.getLogger("smallvit")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "smallvit")
    return lambda: [r.getMessage() for r in caplog.records if "step " in r.getMessage()]


@pytest.fixture
def dino(small_vit) -> Callable[[], DinoObjective]:
    """Stage 1 with stochastic depth, four local views and eight prototypes."""

    def build() -> DinoObjective:
        config = DinoConfig(num_prototypes=8, hidden_dim=16, bottleneck_dim=4)
        backbone = small_vit(drop_path_rate=0.2)
        return DinoObjective(backbone, config)

    return build


@pytest.fixture
def finetune(small_vit) -> Callable[[], FinetuneObjective]:
    """Stage 2 with token labels and stochastic depth."""

    def build() -> FinetuneObjective:
        backbone = small_vit(drop_path_rate=0.2)
        return FinetuneObjective(
            backbone,
            num_classes=5,
            config=SupervisedConfig(),
            token_label=TokenLabelConfig(enabled=True),
        )

    return build


@pytest.fixture
def view_batch() -> Callable[[int], ViewBatch]:
    """Views of a step: a function of the step alone, four steps an epoch."""

    def make(step: int) -> ViewBatch:
        generator = torch.Generator().manual_seed(step)
        return ViewBatch(
            global_views=torch.randn(2, 4, 3, 16, 16, generator=generator),
            local_views=torch.randn(4, 4, 3, 8, 8, generator=generator),
            epoch=step / 4,
            progress=step / 20,
        )

    return make


@pytest.fixture
def labelled_batch() -> Callable[[int], LabeledBatch]:
    """Images, labels, score maps and a box of a step: a function of the step alone."""

    def make(step: int) -> LabeledBatch:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 5, (4,), generator=generator)
        images = torch.randn(4, 3, 16, 16, generator=generator) + labels[:, None, None, None]
        return LabeledBatch(
            images=images,
            labels=labels,
            score_maps=torch.randn(4, 5, 4, 4, generator=generator).softmax(dim=1),
            mix_box=TokenBox(top=step % 3, left=1, bottom=4, right=3, grid=(4, 4)),
        )

    return make


@pytest.fixture
def plan(tmp_path: Path) -> FitPlan:
    """Eight steps, four an epoch, that leave everything in a folder."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return FitPlan(
        title="test",
        seed=0,
        total_steps=8,
        epoch_steps=4.0,
        optim=OptimConfig(lr=1e-3, batch_size=4, weight_decay_end=0.4),
        schedule=ScheduleConfig(epochs=2.0, warmup_epochs=0.5),
        log=LogConfig(every_steps=3),
        runtime=open_runtime(RuntimeConfig(device="cpu", precision="fp32")),
        folder=tmp_path / "run",
        identity={"settings": "{}"},
    )
