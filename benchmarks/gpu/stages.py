"""The two stages of a recipe, ready to take steps as ``smallvit`` takes them, and their data.

The one place of these scripts that knows how the engine is called.

Shapes in this file:
    N    images of the data set
    H W  image in pixels
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float

from smallvit.core import places, rng
from smallvit.core.config import merge
from smallvit.core.objective import AbstractObjective
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.memory import retrying
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import Runtime, compiled_networks, open_runtime
from smallvit.engine.state import TrainState
from smallvit.engine.step import train_step
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.models.registry import create_backbone
from smallvit.pretraining.registry import create_objective
from smallvit.runs.config import Recipe
from smallvit.runs.recipe import load_recipe

RECIPE = "cifar10/gani-vit"
Kind = Literal["pretrain", "finetune"]
KINDS: tuple[Kind, Kind] = ("pretrain", "finetune")
NUM_CLASSES = 10
# What runs in seconds on a CPU: whether the scripts work, not how fast anything is.
TINY: dict[str, Any] = {
    "data": {"image_size": 16},
    "model": {"name": "vit_tiny", "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "pretrain": {
        "method": {"num_prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
        "optim": {"batch_size": 8},
    },
    "finetune": {"optim": {"batch_size": 8}},
}


def read_recipe(data: Path | None, *, tiny: bool) -> Recipe:
    """Read the recipe that is measured, on a folder of images if there is one."""
    settings = TINY if tiny else {"data": {"image_size": 32}}
    if data is not None:
        settings = merge(settings, {"data": {"path": str(data.resolve())}})
    return load_recipe(RECIPE, settings)[0]


def open_data(recipe: Recipe, data: Path | None, device: torch.device) -> Dataset:
    """Load a folder of images, packed once in the cache, or make CIFAR-10's number of them."""
    if data is None:
        return make_dataset(2000 if recipe.data.image_size == 16 else 50_000, recipe.data, device)
    dataset = load_dataset(recipe.data, data_dir=places.data_dir(), cache_dir=places.cache_dir())
    return dataset.to(device)


def make_dataset(count: int, config: DataConfig, device: torch.device) -> Dataset:
    """Make smooth images with some noise, each with one of ten labels."""
    side = config.image_size
    assert side is not None
    generator = torch.Generator().manual_seed(0)
    coarse: Float[torch.Tensor, "N 3 6 6"] = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, side, mode="bicubic")
    noise = 0.05 * torch.randn(count, 3, side, side, generator=generator)
    split = Split(
        images=((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8),
        labels=torch.arange(count) % NUM_CLASSES,
        index=torch.arange(count),
    )
    dataset = Dataset(
        name="made",
        class_names=tuple(f"class {i}" for i in range(NUM_CLASSES)),
        image_size=side,
        splits={"train": split, "labelled": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )
    return dataset.to(device)


class Stage:
    """One stage and where it stands.

    Args:
        kind: Stage 1 or stage 2; stage 2 is without token labels, as in the recipe.
        dataset: On the device.
        recipe: Its settings.
        runtime: Device and precision.
        batch_size: Images of a step; ``None`` is the recipe's.
    """

    def __init__(
        self,
        kind: Kind,
        dataset: Dataset,
        recipe: Recipe,
        runtime: RuntimeConfig,
        batch_size: int | None = None,
    ) -> None:
        self.kind = kind
        self.runtime: Runtime = open_runtime(runtime)
        section = recipe.pretrain if kind == "pretrain" else recipe.finetune
        optim: dict[str, Any] = vars(section.optim)
        self.optim = OptimConfig(**{**optim, "batch_size": batch_size or optim["batch_size"]})
        self.schedule: ScheduleConfig = section.schedule
        torch.manual_seed(rng.step_seed(recipe.seed, -1))
        num_classes = 0 if kind == "pretrain" else dataset.num_classes
        backbone = create_backbone(
            recipe.model, num_classes=num_classes, image_size=dataset.image_size
        )
        device = self.runtime.device
        split = dataset.splits["train" if kind == "pretrain" else "labelled"]
        order = Order(len(split), self.optim.batch_size, recipe.seed, device)
        self.total_steps = order.num_steps(self.schedule.epochs)
        self.epoch_steps = order.size / order.batch_size
        if kind == "pretrain":
            config = recipe.pretrain.method
            objective = create_objective(backbone, config, image_size=dataset.image_size)
            self.batches: Any = ViewBatches(
                dataset, order, config.views, self.total_steps, mask_draws=objective.mask_draws
            )
        else:
            objective = FinetuneObjective(
                backbone, num_classes=num_classes, config=recipe.finetune.method
            )
            self.batches = LabeledBatches(
                dataset, order, recipe.finetune.augment, total_steps=self.total_steps
            )
        self.objective: AbstractObjective[Any] = objective.to(device)
        self.state = TrainState(self.objective, self.plan(recipe))
        # Beyond the first passes, in which stage 1 leaves its prototypes as they are.
        self.step = min(int(2 * self.epoch_steps), self.total_steps // 2)

    def plan(self, recipe: Recipe, folder: Path | None = None, steps: int | None = None) -> FitPlan:
        """Return what the engine needs to know, of a run of some steps."""
        return FitPlan(
            title=self.kind,
            seed=recipe.seed,
            total_steps=steps or self.total_steps,
            epoch_steps=self.epoch_steps,
            optim=self.optim,
            schedule=self.schedule,
            log=recipe.log,
            runtime=self.runtime,
            folder=folder,
        )

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Have the networks compiled, where the runtime says so."""
        with compiled_networks(self.objective) if self.runtime.compiled else nullcontext():
            yield

    def take_steps(self, count: int) -> None:
        """Take some steps, without waiting for the device."""
        state = self.state
        for _ in range(count):
            arguments, metrics = state.begin_step(self.step), None
            while metrics is None:
                with retrying(state, self.step):
                    metrics = train_step(
                        self.objective,
                        self.batches(self.step),
                        micro_batch=state.result.micro_batch,
                        **arguments,
                    )
            state.end_step(self.step)
            self.step += 1
