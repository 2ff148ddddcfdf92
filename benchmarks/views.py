"""Stage-1 views: batched on the device against one image at a time in a DataLoader.

Both make 2 views of 32 px and 8 of 16 px of the same made images with the same kinds of
augmentation. The reference is the usual way: PIL images, torchvision transforms, one DataLoader
worker a core. The two are timed alternately; the figure is the median of the rounds.

    python benchmarks/views.py [--quick]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from smallvit.core.run_folder import environment
from smallvit.data.loader import Dataset as PackedDataset
from smallvit.data.loader import Order, Split
from smallvit.data.views import ViewBatches, ViewsConfig

CONFIG = ViewsConfig()
BATCH = 256


class PilViews(Dataset[list[torch.Tensor]]):
    """The views of Gani et al. by torchvision's transforms on PIL images."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.images = [Image.fromarray(image) for image in pixels.transpose(0, 2, 3, 1)]
        sizes = [32, 32, *([16] * CONFIG.num_local)]
        self.views = [self._view(number, size) for number, size in enumerate(sizes)]

    def _view(self, number: int, size: int) -> Callable[[Image.Image], torch.Tensor]:
        scale = CONFIG.global_scale if number < 2 else CONFIG.local_scale
        blur = transforms.GaussianBlur(9, CONFIG.blur_sigma)
        compose: Any = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, scale, interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply(
                    [transforms.ColorJitter(*CONFIG.color_jitter)], CONFIG.color_jitter_prob
                ),
                transforms.RandomGrayscale(CONFIG.grey_prob),
                transforms.RandomApply([blur], CONFIG.blur_prob[min(number, 2)]),
                transforms.RandomSolarize(128, CONFIG.solarize_prob if number == 1 else 0.0),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ]
        )
        return compose

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [view(self.images[index]) for view in self.views]


def packed(pixels: np.ndarray) -> PackedDataset:
    """Wrap made pixels as a packed dataset."""
    split = Split(
        images=torch.from_numpy(pixels),
        labels=torch.zeros(len(pixels), dtype=torch.int64),
        index=torch.arange(len(pixels)),
    )
    return PackedDataset(
        name="made",
        class_names=("a", "b"),
        image_size=32,
        splits={"train": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        hflip=True,
        fingerprint="",
        split_hashes={},
        broken=(),
        store_path=Path(),
    )


def main() -> None:
    """Time both and print the ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    count, rounds = (512, 2) if quick else (2048, 5)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    order = Order(count, BATCH, 0, torch.device("cpu"))
    ours = ViewBatches(packed(pixels), order, CONFIG, total_steps=1000)
    env = environment([])
    workers = torch.get_num_threads()
    loader = DataLoader(PilViews(pixels), BATCH, num_workers=workers, persistent_workers=True)
    for _ in loader:  # starts the workers
        pass
    ours(0)
    speeds: dict[str, list[float]] = {"ours": [], "reference": []}
    for round_number in range(rounds):
        start = time.perf_counter()
        for step in range(count // BATCH):
            ours(round_number * (count // BATCH) + step)
        speeds["ours"].append(count / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in loader:
            pass
        speeds["reference"].append(count / (time.perf_counter() - start))
    fast, slow = (statistics.median(speeds[name]) for name in ("ours", "reference"))
    print(f"batched views against PIL views in {workers} workers, {count} images, {rounds} rounds")
    print(
        json.dumps(
            {
                "claim": "2 + 8 stage-1 views an image, batched against per image",
                "ours": round(fast, 1),
                "reference": round(slow, 1),
                "ratio": round(fast / slow, 2),
                "unit": "images/s",
                "machine": env["machine"],
                "commit": env["commit"],
            }
        )
    )


if __name__ == "__main__":
    main()
