"""Token labeling: whole steps of stage 2 with it and without it.

Both take the same step of ``smallvit finetune``, data included: the stage-2 values of the recipe
generic/32px (pad and crop, flip, AutoAugment, erasing, CutMix and MixUp, AdamW), the same images in
the same order, batch, weights and threads. The reference stops there; token labeling also reads
each image's map, moves and mixes it like the image, mixes tokens and classifies every one of them.
The maps are made ones, and lie on the device as ``smallvit finetune`` puts them there: all of 10
classes listed, and 5 of 200 with the rest; of 4 x 4 and of 8 x 8 places, for the 8 x 8 tokens of a
ViT and of a ResNet.

The claim is a ratio of images a second above 0.91: less than 10 % of a step. Beside it stand the
two sources without a file, for which nothing is claimed: maps of the default teacher, a
resnet20_small, made in every step (``online``), and of the student's own average (``ema``).

Rounds of all ways are timed alternately in one process, every other one in reverse order. The ratio
is the median of the rounds' own ratios, which other work on the machine disturbs less than a
quotient of two medians. The device is a GPU where there is one; it is waited for at the start and
end of a round alone.

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
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from views import make_images, packed

from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import environment
from smallvit.data.config import AugmentConfig
from smallvit.data.dataset import Dataset
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.optim import create_optimizer, set_schedule
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.step import train_step
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.finetuning.online import OnlineTeacher
from smallvit.models.registry import create_backbone
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.recipe import load_recipe
from smallvit.teachers.score_maps import ScoreMaps
from smallvit.teachers.teacher import Teacher

CONFIG = load_recipe("generic/32px", {})[0].finetune
TOKEN_LABEL = replace(CONFIG.token_label, enabled=True)
MODELS = ("gani_vit", "resnet20_small")
TOP_K = {10: 10, 200: 5}  # classes: listed ones
TEACHER = "resnet20_small"
Source = int | Literal["online", "ema"]
SOURCES: tuple[Source, ...] = (4, 8, "online", "ema")
IMAGE_SIZE = 32
TOTAL_STEPS = 10_000
FIRST_STEP = 1000  # past the first steps of the warm-up


def create_network(model: str, num_classes: int) -> AbstractBackbone:
    """Create one of the networks, with fresh weights."""
    return create_backbone(ModelConfig(name=model), num_classes=num_classes, image_size=IMAGE_SIZE)


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
    """Stage 2 as ``smallvit finetune`` runs it, with token labels or without.

    Args:
        dataset: On the device.
        model: Name of the network.
        batch_size: Images of a step.
        source: Places a side of the stored score maps, or where others come from; ``None`` for
            plain training.
        runtime: Device and precision.
        augment: Augmentation of the images.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: str,
        batch_size: int,
        source: Source | None,
        runtime: Runtime,
        augment: AugmentConfig = CONFIG.augment,
    ) -> None:
        torch.manual_seed(0)
        num_classes = dataset.num_classes
        backbone = create_network(model, num_classes)
        maps, teacher, token_label = None, None, None
        if isinstance(source, int):
            maps = make_maps(len(dataset.splits["train"]), num_classes, source)
            token_label = TOKEN_LABEL
        elif source is not None:
            token_label = replace(TOKEN_LABEL, source=source)
            if source == "online":
                annotator = Teacher(create_network(TEACHER, num_classes)).to(runtime.device)
                teacher = OnlineTeacher(annotator.eval())
        order = Order(
            len(dataset.splits["labelled"]),
            batch_size,
            0,
            runtime.device,
            repeats=augment.repeats,
        )
        self.batches = LabeledBatches(
            dataset,
            order,
            augment,
            score_maps=None if maps is None else maps.to(runtime.device).dense,
            grid=backbone.grid(IMAGE_SIZE),
            mix_token=source is not None,
        )
        objective = FinetuneObjective(
            backbone,
            num_classes=num_classes,
            config=CONFIG.method,
            token_label=token_label,
            teacher=teacher,
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
    sources: Sequence[Source],
    batch_size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Time plain steps and, for each source of score maps, token-labeled ones, alternately."""
    dataset = with_classes(packed(pixels, runtime.device), num_classes)
    ways: dict[Source | None, Way] = {
        source: Way(dataset, model, batch_size, source, runtime) for source in (None, *sources)
    }
    # Images are augmented for a few steps together, so a round takes whole blocks of them.
    blocks = 1 if runtime.device.type == "cpu" else 16
    steps = blocks * ways[None].batches.block_steps
    whole: dict[Source | None, list[float]] = {source: [] for source in ways}
    making: dict[Source | None, list[float]] = {source: [] for source in ways}
    for number in range(rounds + 1):
        for source in reversed(ways) if number % 2 else ways:
            seconds = ways[source].make_batches(steps), ways[source].train(steps)
            if number:  # the first round warms up
                making[source].append(seconds[0])
                whole[source].append(seconds[1])

    images = steps * batch_size
    env = environment([])
    results = []
    for source in sources:
        ratio = statistics.median(a / b for a, b in zip(whole[None], whole[source], strict=True))
        ours, plain, *parts = (
            statistics.median(found)
            for found in (whole[source], whole[None], making[source], making[None])
        )
        batches = " against ".join(f"{1e6 * part / images:.0f}" for part in parts)
        if isinstance(source, int):
            short = f"maps {source} x {source}"
            maps = (
                f"stored score maps of {num_classes} classes ({TOP_K[num_classes]} listed), "
                f"{source} x {source}"
            )
        else:
            short = source
            maps = f"score maps of {num_classes} classes made in the step ({source})"
        claim = f"a step of stage 2 of {model} with {maps}, against the same without token labels"
        print(
            f"{model:14} {num_classes:4} classes, {short:10}: {images / ours:9,.1f} "
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
    batch_size, rounds, sources = (
        (64, 2, SOURCES[1:]) if given.quick else (CONFIG.optim.batch_size, 9, SOURCES)
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
            sources=sources,
            batch_size=batch_size,
            rounds=rounds,
        )
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
