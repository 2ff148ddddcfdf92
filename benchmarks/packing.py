"""Packing a folder of JPEGs once, against reading it once the usual way.

The reference is one pass of torchvision's ImageFolder, resized and cropped alike, through a
DataLoader with one worker a core: what training without a packed store pays in every epoch. Both
read the same files, alternately; a figure is the median of the rounds. Opening the packed store
again and the memory that packing takes above the arrays are printed too.

    python benchmarks/packing.py [--quick] [--data FOLDER]
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from smallvit.core.run_folder import environment
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset

SIZE = 64


def write_images(folder: Path, count: int) -> None:
    """Write smooth made images as JPEG, ten classes."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        pixels = F.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1).mul(255).byte()[0]
        path = folder / str(i % 10) / f"{i:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def read_once(folder: Path) -> int:
    """Read every image of a folder the usual way; return how many there are."""
    resize = transforms.Compose(
        [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    )
    loader = DataLoader(ImageFolder(folder, resize), 256, num_workers=torch.get_num_threads())
    return sum(len(labels) for _, labels in loader)


def own_memory() -> int:
    """Return the memory of this process in bytes without mapped files (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch_memory(work: Callable[[], object]) -> int:
    """Return the most memory that ``work`` takes above what was there, in bytes."""
    before, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], own_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return most[0]


def main() -> None:
    """Time both and print the ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and one round")
    parser.add_argument("--data", type=Path, help="folder of class folders; made images without")
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {"ours": [], "reference": []}
    memory, opening = [], []
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.data or Path(made)
        if arguments.data is None:
            write_images(folder, 1000 if arguments.quick else 10_000)
        count = 0
        for _ in range(1 if arguments.quick else 3):
            with tempfile.TemporaryDirectory() as cache:
                config = DataConfig(path=folder, image_size=SIZE)

                def pack(config: DataConfig = config, cache: str = cache) -> None:
                    load_dataset(config, data_dir=Path(cache), cache_dir=Path(cache))

                start = time.perf_counter()
                memory.append(watch_memory(pack))
                packing = time.perf_counter() - start
                start = time.perf_counter()
                pack()
                opening.append(time.perf_counter() - start)
            start = time.perf_counter()
            count = read_once(folder)
            speeds["reference"].append(count / (time.perf_counter() - start))
            speeds["ours"].append(count / packing)
    fast, slow = (statistics.median(speeds[name]) for name in ("ours", "reference"))
    print(
        f"{count:,} images: packing {count / fast:.1f} s, once; a pass of ImageFolder "
        f"{count / slow:.1f} s; opening again {statistics.median(opening):.3f} s; packing takes "
        f"{max(memory) / 2**20:.0f} MiB above the arrays"
    )
    env = environment([])
    print(
        json.dumps(
            {
                "claim": "packing JPEGs once against one pass of ImageFolder",
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
