"""Augmentation: batched on the device against one image at a time in a DataLoader.

Stage 1 makes 2 views of 32 px and 8 of 16 px of an image, as Gani et al. do for CIFAR-10; stage 2
crops, mirrors, applies CIFAR-10's AutoAugment and erases. The reference is the usual way: PIL
images, torchvision's transforms, a DataLoader with one worker a core. Both see the same made images
in batches of the paper's size (512 and 256) and are timed alternately; a figure is the median of
the rounds. On a GPU a third figure is the speed there.

    python benchmarks/views.py [--quick]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from smallvit.core.run_folder import environment
from smallvit.data.config import AugmentConfig, ViewsConfig
from smallvit.data.dataset import Dataset as PackedDataset
from smallvit.data.dataset import Split
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ViewBatches
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime

VIEWS = ViewsConfig()
AUGMENT = AugmentConfig(policy="autoaugment-cifar10", erasing_prob=0.25)
PRETRAIN_BATCH, FINETUNE_BATCH = 512, 256
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def make_images(count: int) -> torch.Tensor:
    """Make smooth images with some noise: their histograms are nearer photographs' than noise's."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, 32, mode="bicubic")
    noise = 0.05 * torch.randn(count, 3, 32, 32, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def view_transforms() -> list[Any]:
    """Write the views of Gani et al. in torchvision's transforms."""

    def view(number: int, size: int) -> Any:
        scale = VIEWS.global_scale if number < 2 else VIEWS.local_scale
        blur = transforms.GaussianBlur(9, VIEWS.blur_sigma)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, scale, interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply(
                    [transforms.ColorJitter(*VIEWS.color_jitter)], VIEWS.color_jitter_prob
                ),
                transforms.RandomGrayscale(VIEWS.grey_prob),
                transforms.RandomApply([blur], VIEWS.blur_prob[min(number, 2)]),
                transforms.RandomSolarize(128, VIEWS.solarize_prob if number == 1 else 0.0),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    sizes = [32, 32, *([16] * VIEWS.num_local)]
    return [view(number, size) for number, size in enumerate(sizes)]


def augment_transforms() -> list[Any]:
    """Write stage 2's augmentation in torchvision's transforms."""
    return [
        transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(AUGMENT.erasing_prob, (0.02, 0.4)),
            ]
        )
    ]


class PerImage(Dataset[list[torch.Tensor]]):
    """PIL images, each put through some transforms."""

    def __init__(self, pixels: torch.Tensor, changes: list[Any]) -> None:
        self.images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
        self.changes = changes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [change(self.images[index]) for change in self.changes]


def packed(pixels: torch.Tensor, device: torch.device) -> PackedDataset:
    """Wrap made pixels as a packed dataset on a device."""
    split = Split(
        images=pixels,
        labels=torch.zeros(len(pixels), dtype=torch.int64),
        index=torch.arange(len(pixels)),
    )
    dataset = PackedDataset(
        name="made",
        class_names=("a", "b"),
        image_size=32,
        splits={"train": split, "labelled": split},
        mean=MEAN,
        std=STD,
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )
    return dataset.to(device)


def speed(work: Callable[[], object], count: int) -> float:
    """Return images a second of one round."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def walk(batches: Any, first: int, steps: int) -> None:
    """Make the batches of some steps."""
    for step in range(first, first + steps):
        batches(step)


def compare(
    claim: str, pixels: torch.Tensor, changes: list[Any], batches: Any, rounds: int
) -> dict[str, Any]:
    """Time batches on the CPU against per-image transforms, alternately."""
    count, workers = len(pixels), torch.get_num_threads()
    batch_size = batches.order.batch_size
    loader = DataLoader(
        PerImage(pixels, changes), batch_size, num_workers=workers, persistent_workers=True
    )
    steps = count // batch_size
    for _ in loader:  # starts the workers
        pass
    batches(0)  # builds the tables
    speeds: dict[str, list[float]] = {"ours": [], "reference": []}
    passes = math.ceil(speed(lambda: walk(batches, 0, steps), count) / 20_000)
    for number in range(rounds):
        first = number * passes * steps
        # As many passes as take about as long as one of the reference's.
        ours = speed(lambda first=first: walk(batches, first, passes * steps), passes * count)
        speeds["ours"].append(ours)
        speeds["reference"].append(speed(lambda: [None for _ in loader], count))
    fast, slow = (statistics.median(speeds[name]) for name in ("ours", "reference"))
    print(
        f"{claim}: {fast:,.0f} against {slow:,.0f} images/s in {workers} workers, "
        f"{count} images, {rounds} rounds"
    )
    env = environment([])
    return {
        "claim": claim,
        "ours": round(fast, 1),
        "reference": round(slow, 1),
        "ratio": round(fast / slow, 2),
        "unit": "images/s",
        "machine": env["machine"],
        "commit": env["commit"],
    }


def gpu_speed(batches: Any, steps: int) -> float:
    """Return images a second on the GPU."""
    walk(batches, 0, 5)
    torch.cuda.synchronize()

    def work() -> None:
        walk(batches, 0, steps)
        torch.cuda.synchronize()

    return statistics.median(speed(work, steps * batches.order.batch_size) for _ in range(5))


def main() -> None:
    """Time both stages and print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    count, rounds = (1024, 2) if quick else (8192, 7)
    pixels = make_images(count)

    def make(device: torch.device) -> list[Any]:
        dataset = packed(pixels, device)
        orders = [Order(count, size, 0, device) for size in (PRETRAIN_BATCH, FINETUNE_BATCH)]
        return [
            ViewBatches(dataset, orders[0], VIEWS, total_steps=1000),
            LabeledBatches(dataset, orders[1], AUGMENT),
        ]

    claims = (
        f"2 + {VIEWS.num_local} stage-1 views an image, batched against per image",
        "stage-2 AutoAugment, crop, flip and erasing, batched against per image",
    )
    made = make(open_runtime(RuntimeConfig(device="cpu")).device)  # as a run sets the machine up
    results = [
        compare(claim, pixels, changes, batches, rounds)
        for claim, changes, batches in zip(
            claims, (view_transforms(), augment_transforms()), made, strict=True
        )
    ]
    if torch.cuda.is_available():
        for result, batches in zip(results, make(torch.device("cuda")), strict=True):
            result["gpu"] = round(gpu_speed(batches, 10 if quick else 100), 1)
            print(f"{result['claim']}: {result['gpu']:,.0f} images/s on the GPU")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
