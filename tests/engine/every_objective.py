"""Three steps of every kind of objective, alone or under torchrun; the losses go to a file.

python every_objective.py FILE
torchrun --nproc-per-node 2 every_objective.py FILE
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from smallvit.core.model_config import ModelConfig
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ViewBatches, eval_batches
from smallvit.engine.config import LogConfig, OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import open_runtime
from smallvit.engine.state import TrainState
from smallvit.engine.step import train_step
from smallvit.evaluate.classify import predict_logits
from smallvit.evaluate.knn import extract_features
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.parallel import processes
from smallvit.parallel.process_group import process_group
from smallvit.pretraining.config import METHODS
from smallvit.pretraining.registry import create_objective

BATCH, STEPS, SIDE, CLASSES = 6, 3, 16, 5
DEVICE = torch.device("cpu")
VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.3}
# What compares images, averages over them or draws for them is on.
SETTINGS: dict[str, dict[str, Any]] = {
    "dino": {"head_batch_norm": True, "num_prototypes": 8},
    "ibot": {"koleo_weight": 0.1, "num_prototypes": 8},
}


def dataset() -> Dataset:
    """Thirteen images of noise: batches of six end within a pass, evaluation has a remainder."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (13, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    split = Split(images=images, labels=torch.arange(13) % CLASSES, index=torch.arange(13))
    return Dataset(
        name="noise",
        class_names=tuple("abcde"),
        image_size=SIDE,
        splits=dict.fromkeys(("train", "labelled", "val", "test"), split),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def network(config: ModelConfig | None = None, num_classes: int = 0) -> AbstractBackbone:
    """Build the same weights always."""
    torch.manual_seed(0)
    config = config or ModelConfig(**VIT)
    return create_backbone(config, num_classes=num_classes, image_size=SIDE)


def objectives(data: Dataset) -> Iterator[tuple[str, Any, Callable[[int], Any]]]:
    """Yield every kind of objective with its batches."""
    order = Order(len(data.splits["train"]), BATCH, 0, DEVICE)
    for name, config_class in METHODS.items():
        config = config_class(**SETTINGS.get(name, {}))
        if config.views.num_local:
            config = replace(config, views=ViewsConfig(num_local=2))
        torch.manual_seed(1)
        objective = create_objective(network(), config, image_size=SIDE)
        draws = objective.mask_draws
        yield name, objective, ViewBatches(data, order, config.views, STEPS, mask_draws=draws)
    maps = torch.rand(13, CLASSES, 4, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    augment = AugmentConfig(policy="randaugment", cutmix_alpha=1.0, mixup_alpha=0.8, mix_prob=1.0)
    label = TokenLabelConfig(enabled=True)
    for name, model in {
        "token labels": ModelConfig(**VIT),
        "cct: dropout": ModelConfig(name="cct_7_3x1"),
        "resnet: batch norms": ModelConfig(name="resnet20_small"),
    }.items():
        torch.manual_seed(1)
        token_label = label if name == "token labels" else None
        objective = FinetuneObjective(
            network(model, CLASSES),
            num_classes=CLASSES,
            config=SupervisedConfig(),
            token_label=token_label,
        )
        batches = LabeledBatches(
            data,
            order,
            augment,
            score_maps=maps.__getitem__ if token_label else None,
            grid=(4, 4),
            mix_token=token_label is not None,
            total_steps=STEPS,
        )
        yield name, objective, batches


def run(name: str, objective: Any, batches: Callable[[int], Any], **runtime: Any) -> list[float]:
    """Return the losses of some steps and the sum of the weights' magnitudes after them."""
    plan = FitPlan(
        title=name,
        seed=0,
        total_steps=STEPS,
        epoch_steps=13 / BATCH,
        optim=OptimConfig(lr=1e-3, batch_size=BATCH),
        schedule=ScheduleConfig(),
        log=LogConfig(),
        runtime=open_runtime(RuntimeConfig(device="cpu", precision="fp32", **runtime)),
    )
    state = TrainState(objective, plan)
    found = []
    for step in range(STEPS):
        arguments = state.begin_step(step)
        micro_batch = plan.runtime.micro_batch
        metrics = train_step(objective, batches(step), micro_batch=micro_batch, **arguments)
        state.end_step(step)
        found.append(processes.add_up_(metrics["train/loss"].clone()).item())
    weights = objective.state_dict().values()
    return [*found, sum(value.double().abs().sum().item() for value in weights)]


def main() -> None:
    """Take the steps and write what they cost; the first process writes."""
    torch.set_num_threads(1)
    with process_group(cuda=False):
        data = dataset()
        losses = {name: run(name, *rest) for name, *rest in objectives(data)}
        backbone = network(num_classes=CLASSES)
        scored = []
        for forward in (predict_logits, extract_features):
            batches = eval_batches(data, data.splits["val"], 4)
            values, labels = forward(backbone, batches, autocast=torch.no_grad)
            scored.append([values.tolist(), labels.tolist()])
        if processes.is_first():
            Path(sys.argv[1]).write_text(json.dumps({"losses": losses, "scored": scored}))


if __name__ == "__main__":
    main()
