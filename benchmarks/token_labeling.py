"""Token labeling from stored score maps: whole steps of stage 2 with it and without it.

Both take the same step of ``smallvit finetune``, data included: the stage-2 values of the recipe
generic/32px (pad and crop, flip, AutoAugment, erasing, CutMix and MixUp, AdamW), the same images in
the same order, batch, weights and threads. The reference stops there; token labeling also reads
each image's map, moves and mixes it like the image, mixes tokens and classifies every one of them.
The maps are made ones, and lie on the device as ``smallvit finetune`` puts them there: all of 10
classes listed, and 5 of 200 with the rest; of 4 x 4 and of 8 x 8 places, for the 8 x 8 tokens of a
ViT and of a ResNet.

The claim is a ratio of images a second above 0.91: less than 10 % of a step. Rounds of all ways are
timed alternately in one process, every other one in reverse order. The ratio is the median of the
rounds' own ratios, which other work on the machine disturbs less than a quotient of two medians.
The device is a GPU where there is one; it is waited for at the start and end of a round alone.

    python benchmarks/token_labeling.py [--quick] [--precision auto|fp32|bf16]

Shapes in this file:
    N    images of the data set
    B    images of a chunk of maps
    C    classes
    H W  image in pixels
    h w  the teacher's grid
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from views import make_images, packed

from smallvit.core.run_folder import environment
from smallvit.data.loader import Dataset, Order
from smallvit.data.views import LabelledBatches
from smallvit.engine.optim import create_optimizer, set_schedule
from smallvit.engine.runtime import Runtime, RuntimeConfig, open_runtime
from smallvit.engine.step import train_step
from smallvit.finetune.objective import FinetuneObjective
from smallvit.models.registry import ModelConfig, create_backbone
from smallvit.run.recipe import load_recipe
from smallvit.teachers.score_maps import ScoreMaps

CONFIG = load_recipe("generic/32px", {})[0].finetune
TOKEN_LABEL = replace(CONFIG.token_label, enabled=True)
MODELS = ("gani_vit", "resnet20_small")
TOP_K = {10: 10, 200: 5}  # classes: listed ones
GRIDS = (4, 8)
IMAGE_SIZE = 32
TOTAL_STEPS = 10_000
FIRST_STEP = 1000  # past the first steps of the warm-up


def make_maps(count: int, num_classes: int, grid: int) -> ScoreMaps:
    """Make the maps of a teacher that is sure at some places and unsure at others."""
    generator = torch.Generator().manual_seed(0)

    def chunks() -> Iterator[Float[Tensor, "B C h w"]]:
        for size in torch.arange(count).split(256):
            logits = torch.randn(len(size), num_classes, grid, grid, generator=generator)
            yield (4 * logits).softmax(dim=1)

    return ScoreMaps.from_dense(chunks(), TOP_K[num_classes])


def with_classes(dataset: Dataset, num_classes: int) -> Dataset:
    """Give the made images labels of that many classes."""
    split = dataset.splits["labelled"]
    split = replace(split, labels=torch.arange(len(split), device=split.index.device) % num_classes)
    names = tuple(str(label) for label in range(num_classes))
    return replace(dataset, class_names=names, splits={"train": split, "labelled": split})


class Way:
    """Stage 2 as ``smallvit finetune`` runs it, with score maps or without.

    Args:
        dataset: On the device.
        model: Name of the network.
        batch_size: Images of a step.
        maps: The teacher's score maps; ``None`` for plain training.
        runtime: Device and precision.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: str,
        batch_size: int,
        maps: ScoreMaps | None,
        runtime: Runtime,
    ) -> None:
        torch.manual_seed(0)
        backbone = create_backbone(
            ModelConfig(name=model), num_classes=dataset.num_classes, image_size=IMAGE_SIZE
        )
        order = Order(
            len(dataset.splits["labelled"]),
            batch_size,
            0,
            runtime.device,
            repeats=CONFIG.augment.repeats,
        )
        self.batches = LabelledBatches(
            dataset,
            order,
            CONFIG.augment,
            score_maps=None if maps is None else maps.to(runtime.device).dense,
            grid=backbone.grid(IMAGE_SIZE),
            mix_token=maps is not None,
        )
        objective = FinetuneObjective(
            backbone,
            num_classes=dataset.num_classes,
            config=CONFIG.method,
            token_label=None if maps is None else TOKEN_LABEL,
        )
        self.objective = objective.to(runtime.device).train()
        self.optimizer = create_optimizer(self.objective, CONFIG.optim)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.runtime = runtime
        self.step = FIRST_STEP * self.batches.block_steps

    def train(self, steps: int) -> float:
        """Take some steps; return the seconds."""
        start = self._now()
        for _ in range(steps):
            set_schedule(
                self.optimizer,
                CONFIG.optim,
                CONFIG.schedule,
                step=self.step,
                total_steps=TOTAL_STEPS,
            )
            train_step(
                self.objective,
                self.batches(self.step),
                self.optimizer,
                self.parameters,
                grad_clip_norm=CONFIG.optim.grad_clip_norm,
                grad_clip_mode=CONFIG.optim.grad_clip_mode,
                runtime=self.runtime,
            )
            self.step += 1
        return self._now() - start

    def make_batches(self, steps: int) -> float:
        """Make the batches of the next steps; return the seconds."""
        start = self._now()
        for step in range(self.step, self.step + steps):
            self.batches(step)
        return self._now() - start

    def _now(self) -> float:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def compare(
    model: str,
    num_classes: int,
    pixels: UInt8[Tensor, "N 3 H W"],
    runtime: Runtime,
    *,
    grids: Sequence[int],
    batch_size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Time plain steps and, for each grid of the teacher, token-labeled ones, alternately."""
    dataset = with_classes(packed(pixels, runtime.device), num_classes)
    ways = {None: Way(dataset, model, batch_size, None, runtime)} | {
        grid: Way(dataset, model, batch_size, make_maps(len(pixels), num_classes, grid), runtime)
        for grid in grids
    }
    # Images are augmented for a few steps together, so a round takes whole blocks of them.
    blocks = 1 if runtime.device.type == "cpu" else 16
    steps = blocks * ways[None].batches.block_steps
    whole: dict[int | None, list[float]] = {grid: [] for grid in ways}
    making: dict[int | None, list[float]] = {grid: [] for grid in ways}
    for number in range(rounds + 1):
        for grid in reversed(ways) if number % 2 else ways:
            seconds = ways[grid].make_batches(steps), ways[grid].train(steps)
            if number:  # the first round warms up
                making[grid].append(seconds[0])
                whole[grid].append(seconds[1])

    images = steps * batch_size
    env = environment([])
    results = []
    for grid in grids:
        ratio = statistics.median(a / b for a, b in zip(whole[None], whole[grid], strict=True))
        ours, plain, *parts = (
            statistics.median(found)
            for found in (whole[grid], whole[None], making[grid], making[None])
        )
        batches = " against ".join(f"{1e6 * part / images:.0f}" for part in parts)
        claim = (
            f"a step of stage 2 of {model} with stored score maps of {num_classes} classes "
            f"({TOP_K[num_classes]} listed), {grid} x {grid}, against the same step without token "
            "labels"
        )
        print(
            f"{model:14} {num_classes:4} classes, maps {grid} x {grid}: {images / ours:9,.1f} "
            f"against {images / plain:9,.1f} images/s, ratio {ratio:.3f}; batches made in "
            f"{batches} us an image",
            flush=True,
        )
        results.append(
            {
                "claim": claim,
                "ours": round(images / ours, 1),
                "reference": round(images / plain, 1),
                "ratio": round(ratio, 3),
                "unit": "images/s",
                "machine": env["machine"],
                "commit": env["commit"],
            }
        )
    return results


def main() -> None:
    """Time all networks and class counts and print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="smaller batches, fewer ways and rounds"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    given = parser.parse_args()
    batch_size, rounds, grids = (
        (64, 2, GRIDS[1:]) if given.quick else (CONFIG.optim.batch_size, 9, GRIDS)
    )
    runtime = open_runtime(RuntimeConfig(precision=given.precision))
    warnings.filterwarnings("ignore", message="patches of .* px are larger")
    pixels = make_images(2048)
    precision = "float32" if runtime.autocast_dtype is None else "bfloat16"
    print(
        f"{runtime.device.type}, {precision}, {torch.get_num_threads()} threads, batches of "
        f"{batch_size}, median of {rounds} rounds:"
    )
    results = [
        result
        for model in MODELS
        for num_classes in TOP_K
        for result in compare(
            model,
            num_classes,
            pixels,
            runtime,
            grids=grids,
            batch_size=batch_size,
            rounds=rounds,
        )
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
