"""Cost as work grows: seconds and peak memory against images, image side, tokens and classes.

Each point is measured in a process of its own, so that its peak memory is its own; what Python,
torch and the network take before is left out. Seconds are the median of a few steps in bfloat16.
Each series ends with its slope in a plot of logarithms: 1 is linear, 0 is no growth. It is that of
the larger half of the series, where fixed costs weigh least, and its reference is the most that it
may be.

    packing      packing JPEG files of 32 px, by images
    pass         a pass of stage 1, by images; memory with all of them packed
    same tokens  a step of stage 1 on images of 16 to 96 px cut into 8 x 8 patches: linear in pixels
                 at most, so 2 by side
    tokens       a step of stage 1 on images of 16 to 96 px with patches of 4 px; attention makes it
                 quadratic in the end
    classes      a step of stage 2 with stored score maps
    listing      keeping the likeliest classes of a batch of score maps

The network is gani_vit for sides and tokens, and one of 64 wide and 2 deep where data grows.

    python benchmarks/scaling.py [--quick] [--plot FILE.png]
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from claims import print_claims, state
from PIL import Image

from smallvit.core.model_config import ModelConfig
from smallvit.core.rng import step_seed
from smallvit.data.config import AugmentConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.order import Order
from smallvit.data.views import LabeledBatches, ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig
from smallvit.engine.optim import create_optimizer
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.engine.step import train_step
from smallvit.finetuning.config import SupervisedConfig, TokenLabelConfig
from smallvit.finetuning.objective import FinetuneObjective
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective
from smallvit.teachers.score_maps import ScoreMaps

BATCH, STEPS = 16, 5
GRID = 8
SMALL = ModelConfig(name="vit_tiny", patch_size=4, embed_dim=64, depth=2, num_heads=4)
Point = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One thing that grows.

    Attributes:
        axis: What it is, as it stands below the plot.
        values: How large it is at each point.
        work: Measures one point.
        slope: The most that the slope of seconds may be.
        memory: The most that the slope of peak memory may be.
    """

    axis: str
    values: tuple[int, ...]
    work: Callable[[int], Point]
    slope: float
    memory: float


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_dataset(count: int, side: int, num_classes: int) -> Dataset:
    """Make a packed dataset of random pixels, which cost no less than photographs."""
    generator = torch.Generator().manual_seed(0)
    split = Split(
        images=torch.randint(
            0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator
        ),
        labels=torch.arange(count) % num_classes,
        index=torch.arange(count),
    )
    return Dataset(
        name="made",
        class_names=tuple(str(label) for label in range(num_classes)),
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


def measure_steps(objective: Any, batches: Callable[[int], Any], runtime: Runtime) -> Point:
    """Take some steps; return the seconds of one."""
    optim = OptimConfig(batch_size=BATCH)
    objective = objective.to(runtime.device).train()
    optimizer = create_optimizer(objective, optim)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    times = []
    for step in range(STEPS + 1):
        torch.manual_seed(step_seed(0, step))
        start = time.perf_counter()
        train_step(
            objective,
            batches(step),
            optimizer,
            parameters,
            grad_clip_norm=optim.grad_clip_norm,
            runtime=runtime,
        )
        objective.after_step(step / 1000)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:])}


def pretrain_steps(count: int, side: int, model: ModelConfig) -> Point:
    """Take steps of stage 1 on so many images of a side in pixels."""
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    config = DinoConfig()
    objective = DinoObjective(create_backbone(model, num_classes=0, image_size=side), config)
    before = peak_memory()
    dataset = make_dataset(count, side, 10)
    order = Order(count, BATCH, 0, runtime.device)
    batches = ViewBatches(dataset, order, config.views, 1000)
    point = measure_steps(objective, batches, runtime)
    return {**point, "bytes": peak_memory() - before}


def one_pass(count: int) -> Point:
    """Take steps on so many images and scale them up to a pass."""
    point = pretrain_steps(count, 32, SMALL)
    return {**point, "seconds": point["seconds"] * count / BATCH}


def same_tokens(side: int) -> Point:
    """Take steps on images of a side, always 8 x 8 patches."""
    return pretrain_steps(4 * BATCH, side, ModelConfig(name="gani_vit", patch_size=side // GRID))


def more_tokens(num_tokens: int) -> Point:
    """Take steps on images of so many patches of 4 px."""
    side = 4 * math.isqrt(num_tokens)
    return pretrain_steps(4 * BATCH, side, ModelConfig(name="gani_vit", patch_size=4))


def packing(count: int) -> Point:
    """Pack so many JPEG files."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as cache:
        for i in range(count):
            coarse = torch.rand(1, 3, 6, 6, generator=generator)
            pixels = F.interpolate(coarse, 32, mode="bicubic").clamp(0, 1).mul(255).byte()[0]
            path = Path(made) / str(i % 10) / f"{i:06}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
        before, start = peak_memory(), time.perf_counter()
        config = DataConfig(path=Path(made), image_size=32)
        load_dataset(config, data_dir=Path(cache), cache_dir=Path(cache))
        return {"seconds": time.perf_counter() - start, "bytes": peak_memory() - before}


def finetune_classes(num_classes: int) -> Point:
    """Take steps of stage 2 with stored score maps of so many classes."""
    runtime = open_runtime(RuntimeConfig(device="cpu", precision="bf16"))
    backbone = create_backbone(SMALL, num_classes=num_classes, image_size=32)
    objective = FinetuneObjective(
        backbone,
        num_classes=num_classes,
        config=SupervisedConfig(),
        token_label=TokenLabelConfig(enabled=True),
    )
    before, count = peak_memory(), 1024
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(count, num_classes, 1, 1, generator=generator).topk(5, dim=1).indices
    maps = ScoreMaps(
        prob=torch.full((count, 5, GRID, GRID), 0.15).half(),
        index=index.int().expand(-1, -1, GRID, GRID).contiguous(),
        rest=torch.full((count, GRID, GRID), 0.25).half(),
        num_classes=num_classes,
    )
    batches = LabeledBatches(
        make_dataset(count, 32, num_classes),
        Order(count, BATCH, 0, runtime.device),
        AugmentConfig(),
        score_maps=maps.dense,
        grid=(GRID, GRID),
        mix_token=True,
    )
    point = measure_steps(objective, batches, runtime)
    return {**point, "bytes": peak_memory() - before}


def list_classes(num_classes: int) -> Point:
    """Keep the likeliest classes of a batch of score maps."""
    before, times = peak_memory(), []
    dense = torch.rand(4 * BATCH, num_classes, GRID, GRID).softmax(dim=1)
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        ScoreMaps.from_batch(dense, 5)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "bytes": peak_memory() - before}


SERIES = {
    "packing": Series(
        axis="images", values=(500, 1000, 2000, 4000, 8000), work=packing, slope=1, memory=1
    ),
    "pass": Series(
        axis="images", values=(1024, 4096, 16384, 65536, 262144), work=one_pass, slope=1, memory=1
    ),
    "same tokens": Series(
        axis="image side in pixels",
        values=(16, 32, 48, 64, 96),
        work=same_tokens,
        slope=2,
        memory=2,
    ),
    "tokens": Series(
        axis="tokens of a large view",
        values=(16, 64, 144, 256, 576),
        work=more_tokens,
        slope=2,
        memory=2,
    ),
    "classes": Series(
        axis="classes", values=(10, 30, 100, 300, 1000), work=finetune_classes, slope=1, memory=1
    ),
    "listing": Series(
        axis="classes", values=(10, 30, 100, 300, 1000), work=list_classes, slope=1, memory=1
    ),
}


def measure_apart(name: str, value: int) -> Point:
    """Measure one point in a process of its own."""
    command = [sys.executable, __file__, "--point", name, str(value)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.strip().rpartition("\n")[2])


def slope_of(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the larger half of a series in a plot of logarithms."""
    half = max(2, (len(values) + 1) // 2)
    x, y = ([math.log(v) for v in numbers[-half:]] for numbers in (values, costs))
    return statistics.linear_regression(x, y).slope


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """Draw seconds above and memory below, by what grows; dotted is the growth that is allowed."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    grows = list(dict.fromkeys(SERIES[name].axis for name in found))
    figure, panels = plt.subplots(
        2, len(grows), figsize=(3.4 * len(grows), 5.8), layout="constrained", squeeze=False
    )
    for column, axis in enumerate(grows):
        for panel, cost in zip(panels[:, column], ("seconds", "bytes"), strict=True):
            lowest, values = math.inf, []
            for name in (name for name in found if SERIES[name].axis == axis):
                values = [point["value"] for point in found[name]]
                costs = [point[cost] / (2**20 if cost == "bytes" else 1) for point in found[name]]
                slope = f"{name}: slope {slope_of(values, costs):.2f}"
                (line,) = panel.plot(values, costs, "o-", label=slope)
                limit = SERIES[name].slope if cost == "seconds" else SERIES[name].memory
                allowed = [costs[-1] * (value / values[-1]) ** limit for value in values]
                panel.plot(values, allowed, ":", color=line.get_color(), linewidth=1)
                lowest = min(lowest, *costs)
            panel.set(
                xscale="log",
                yscale="log",
                xlabel=axis,
                ylabel="seconds" if cost == "seconds" else "peak memory, MiB",
            )
            panel.set_ylim(bottom=lowest / 3)
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure all series, print their slopes as claims, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest points of each")
    parser.add_argument("--plot", type=Path, help="PNG file of the costs")
    parser.add_argument("--point", nargs=2, metavar=("SERIES", "VALUE"), help="one point alone")
    given = parser.parse_args()
    if given.point:
        warnings.filterwarnings("ignore", message="patches of .* px")
        print(json.dumps(SERIES[given.point[0]].work(int(given.point[1]))))
        return
    found: dict[str, list[Point]] = {}
    claims = []
    for name, series in SERIES.items():
        values = series.values[:2] if given.quick else series.values
        points = found[name] = []
        for value in values:
            points.append({"value": value, **measure_apart(name, value)})
            print(
                f"{name:12} {value:7,} {series.axis}: {points[-1]['seconds']:9.4f} s, "
                f"{points[-1]['bytes'] / 2**20:7.1f} MiB",
                flush=True,
            )
        for cost, limit in (("seconds", series.slope), ("bytes", series.memory)):
            reached = slope_of(values, [point[cost] for point in points])
            said = "time" if cost == "seconds" else "peak memory"
            claims.append(
                state(
                    f"growth of {said} with {series.axis} ({name}), against the most it may be",
                    reached,
                    limit,
                    "power",
                )
            )
    if given.plot:
        draw(found, given.plot)
    print_claims(claims)


if __name__ == "__main__":
    main()
