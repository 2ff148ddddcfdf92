"""Losses of 20 steps, recorded once. A change here is a change of results.

To record them anew, after a change that is meant:

    SMALLVIT_WRITE_GOLDEN=1 pytest tests/engine/test_golden.py
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smallvit.engine.config import LogConfig, ScheduleConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics

pytestmark = pytest.mark.exact

TORCH = ".".join(torch.__version__.split(".")[:2])
ALIKE = ("2.14", "2.15")  # versions of torch that make the same fresh weights: 1e-6 apart in loss
GOLDEN = Path(__file__).parents[1] / "golden"
STAGES = {"pretrain": ("dino", "view_batch"), "finetune": ("finetune", "labelled_batch")}


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_on_record(stage, plan, request):
    build, batches = (request.getfixturevalue(name) for name in STAGES[stage])
    schedule = ScheduleConfig(epochs=5.0, warmup_epochs=1.0)
    plan = replace(plan, total_steps=20, schedule=schedule, log=LogConfig(every_steps=1))
    fit(build(), batches, plan)
    losses = [row["train/loss"] for row in read_metrics(plan.folder / "metrics.jsonl")]
    path = GOLDEN / f"{stage}.json"
    if os.environ.get("SMALLVIT_WRITE_GOLDEN"):
        record = {"torch": TORCH, "train/loss": [round(v, 6) for v in losses]}
        path.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(path.read_text())
    if record["torch"] != TORCH and not {record["torch"], TORCH} <= set(ALIKE):
        pytest.skip(f"recorded with torch {record['torch']}; fresh weights differ in {TORCH}")
    assert losses == pytest.approx(record["train/loss"], rel=1e-3)
