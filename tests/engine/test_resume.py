"""A run that is stopped in the middle of a pass and continued ends with the same bits: every
architecture family, both stages, with augmentation, momentum teacher, averaged weights and
micro-batches."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smallvit.core.model_config import ModelConfig
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ViewBatches
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint
from smallvit.engine.config import LogConfig, OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import open_runtime
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective

SHARED = runpy.run_path(str(Path(__file__).with_name("every_objective.py")))
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny": SHARED["VIT"],
    "gani_cait": {"depth": 2},
    "gani_swin": {"patch_size": 1},
    "lvvit_tiny": {"depth": 2},
    "t2t_vit_7": {},
    "cct_7_3x1": {},
    "sl_vit": {},
    "convnext_atto_small": {},
    "resnet8_small": {},
}
LARGE = ("gani_swin", "cct_7_3x1", "sl_vit", "convnext_atto_small")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in FAMILIES]
STEPS, STOP = 3, 1  # 13 images in batches of 6: within the first pass
pytestmark = pytest.mark.filterwarnings("ignore:patches of", "ignore:.*image")


def settings(name: str) -> ModelConfig:
    return ModelConfig(name=name, **FAMILIES[name])


def plan_in(folder: Path, micro_batch: int | None) -> FitPlan:
    (folder / "checkpoints").mkdir(parents=True)
    return FitPlan(
        title="test",
        seed=0,
        total_steps=STEPS,
        epoch_steps=13 / 6,
        optim=OptimConfig(lr=1e-3, batch_size=6, ema_decay=0.9),
        schedule=ScheduleConfig(),
        log=LogConfig(),
        runtime=open_runtime(
            RuntimeConfig(device="cpu", precision="fp32", micro_batch=micro_batch)
        ),
        folder=folder,
    )


def assert_resumes_exactly(build, make_batches, tmp_path, micro_batch):
    whole, broken = (plan_in(tmp_path / name, micro_batch) for name in ("whole", "broken"))
    fit(build(), make_batches(), whole)
    fit(build(), make_batches(), broken, stop_after=STOP)
    torch.manual_seed(99)  # another process, another state of torch's generator
    fit(build(), make_batches(), broken, resume=True)
    ours, theirs = (
        load_checkpoint(each.folder / "checkpoints" / "last.pt") for each in (whole, broken)
    )
    for part in ("objective", "ema", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


@pytest.mark.exact
@pytest.mark.parametrize("family", CASES)
def test_stage_1_resumes_bit_for_bit(family, tmp_path):
    data = SHARED["dataset"]()
    views = ViewsConfig(num_local=0)

    def build() -> DinoObjective:
        backbone = SHARED["network"](settings(family))
        config = DinoConfig(views=views, num_prototypes=8, hidden_dim=16, bottleneck_dim=4)
        torch.manual_seed(1)
        return DinoObjective(backbone, config)

    def make_batches() -> ViewBatches:
        order = Order(13, 6, 0, torch.device("cpu"))
        return ViewBatches(data, order, views, STEPS)

    assert_resumes_exactly(build, make_batches, tmp_path, micro_batch=None)


@pytest.mark.exact
@pytest.mark.parametrize("family", CASES)
def test_stage_2_resumes_bit_for_bit_in_micro_batches(family, tmp_path):
    data = SHARED["dataset"]()
    augment = AugmentConfig(
        policy="randaugment", cutmix_alpha=1.0, mixup_alpha=0.8, erasing_prob=0.5
    )

    def build() -> FinetuneObjective:
        backbone = SHARED["network"](settings(family), 5)
        torch.manual_seed(1)
        return FinetuneObjective(
            backbone,
            num_classes=5,
            config=SupervisedConfig(),
            token_label=TokenLabelConfig(enabled=True, source="ema", mix_token=False),
        )

    def make_batches() -> LabeledBatches:
        order = Order(13, 6, 0, torch.device("cpu"))
        return LabeledBatches(data, order, augment, total_steps=STEPS)

    assert_resumes_exactly(build, make_batches, tmp_path, micro_batch=4)


@pytest.mark.exact
def test_a_batch_is_a_function_of_the_step_whatever_was_drawn_before():
    """There are no workers to change: any step can be made first, and is the same."""
    data, order = SHARED["dataset"](), Order(13, 6, 0, torch.device("cpu"))
    first = ViewBatches(data, order, ViewsConfig(num_local=2), 10)
    for step in range(4):
        first(step)
    alone = ViewBatches(data, replace_order(order), ViewsConfig(num_local=2), 10)(3)
    assert torch.equal(first(3).global_views, alone.global_views)
    assert torch.equal(first(3).local_views, alone.local_views)


def replace_order(order: Order) -> Order:
    return Order(order.size, order.batch_size, order.seed, order.device)


@pytest.mark.parametrize(("old", "peak"), [(True, 4), (False, 2)])
def test_a_run_ends_with_the_warm_up_that_it_began_with(old, peak, finetune, labelled_batch, plan):
    """Checkpoints that name no limit are of runs that warmed up for half of their steps at most."""
    schedule = ScheduleConfig(epochs=2.0, warmup_epochs=2.0)
    plan = replace(plan, schedule=schedule, log=LogConfig(every_steps=1))
    fit(finetune(), labelled_batch, plan, stop_after=2)
    last = plan.folder / "checkpoints" / "last.pt"
    if old:
        state = load_checkpoint(last)
        del state["format"], state["result"]["most_warmup"]
        save_checkpoint(last, state)
    for stop in (3, None):  # it is kept
        fit(finetune(), labelled_batch, plan, resume=True, stop_after=stop)
    rates = {row["step"]: row["opt/lr"] for row in read_metrics(plan.folder / "metrics.jsonl")}
    assert max(range(3, 9), key=rates.__getitem__) == peak + 1
    assert rates[peak + 1] == pytest.approx(plan.optim.lr)
