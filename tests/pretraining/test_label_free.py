"""Stage 1 is label-free by construction: no label reaches an objective, whatever the method."""

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from smallvit.data.batches import ViewBatch
from smallvit.data.dataset import Dataset, Split
from smallvit.data.order import Order
from smallvit.data.views import ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.pretraining.config import METHODS
from smallvit.pretraining.registry import create_objective

NUM, SIDE, STEPS = 12, 16, 3


def made(labels: torch.Tensor) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    split = Split(images=images, labels=labels, index=torch.arange(NUM))
    return Dataset(
        name="made",
        class_names=("a", "b", "c"),
        image_size=SIDE,
        splits={"train": split, "labelled": split, "val": split, "test": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def train(name: str, backbone, dataset: Dataset) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Take some steps; return their losses and all weights, of heads and momentum copies too."""
    torch.manual_seed(0)
    config = METHODS[name]()
    objective = create_objective(backbone, config, image_size=SIDE)
    order = Order(NUM, 4, 0, torch.device("cpu"))
    batches = ViewBatches(dataset, order, config.views, STEPS, mask_draws=objective.mask_draws)
    optimizer = create_optimizer(objective, OptimConfig(lr=1e-2))
    losses = []
    for step in range(STEPS):
        metrics = train_step(
            objective.train(),
            batches(step),
            optimizer,
            [p for p in objective.parameters() if p.requires_grad],
            grad_clip_norm=3.0,
            runtime=open_runtime(RuntimeConfig(device="cpu")),
        )
        objective.after_step((step + 1) / STEPS)
        losses.append(float(metrics["train/loss"]))
    return losses, objective.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_other_labels_give_the_same_losses_and_the_same_weights(name, small_vit):
    true, garbage = torch.arange(NUM) % 3, torch.full((NUM,), -(10**12))
    losses, weights = train(name, small_vit(num_classes=0), made(true))
    again, others = train(name, small_vit(num_classes=0), made(garbage))
    assert losses == again
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    moved = "blocks.0.mlp.fc1.weight"
    start = small_vit(num_classes=0).model.state_dict()[moved]
    assert not all(torch.equal(weights[key], start) for key in weights if key.endswith(moved))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_looks_at_labels(name, small_vit, monkeypatch):
    dataset = made(torch.arange(NUM) % 3)

    def refuse(split: Split) -> torch.Tensor:
        raise AssertionError("a label was read")

    monkeypatch.setattr(Split, "labels", property(refuse), raising=False)
    with pytest.raises(AssertionError, match="a label was read"):
        _ = dataset.splits["train"].labels
    losses, _ = train(name, small_vit(num_classes=0), dataset)
    assert len(losses) == STEPS


def test_a_batch_of_stage_1_has_no_place_for_labels():
    fields = {field.name for field in dataclasses.fields(ViewBatch)}
    assert fields == {"global_views", "local_views", "epoch", "progress", "mask_draws"}


@pytest.mark.parametrize("name", METHODS)
def test_an_objective_takes_batches_of_views_alone(name, small_vit):
    objective = create_objective(small_vit(num_classes=0), METHODS[name](), image_size=SIDE)
    hints = get_type_hints(type(objective).forward)
    assert [hint for key, hint in hints.items() if key != "return"] == [ViewBatch]
