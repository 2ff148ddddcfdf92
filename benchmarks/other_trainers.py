"""Training steps against those of other trainers, data included, on the same model and batch.

timm: supervised steps of gani_vit. Ours is stage 2 without token labels: random resized crop, flip,
AutoAugment, erasing, CutMix or MixUp for half of the images, label smoothing. timm's wheel has no
train.py, so its loop is put together here of what timm's own train.py calls: create_dataset and
create_loader with one worker a core, create_optimizer_v2, Mixup, and autocast as of ``--amp
--amp-dtype bfloat16``.

lightly-train: stage-1 steps of DINO on gani_vit with 2 views of 32 px and 8 of 16 px, the same
widths of the head, by ``lightly_train.pretrain`` with one worker a core, in a process of its own
each time: the time between its optimizer steps, start and export left out. It must be installed
with timm, in an environment of its own, and ``--python`` must name that interpreter:

    python -m venv other && other/bin/pip install lightly-train timm
    python benchmarks/other_trainers.py --python other/bin/python [--quick] [--data FOLDER]

Both read JPEG files, ours the packed images of the same folder: packing is another claim. All are
timed in turn; a figure is the median of the rounds.

Shapes in this file:
    N    images of the data set
    H W  image in pixels
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pretrain
import timm
import torch
from claims import alternate, print_claims, state
from jaxtyping import UInt8
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.clip_grad import dispatch_clip_grad
from token_labeling import CONFIG, IMAGE_SIZE, Way, with_classes
from torch import Tensor
from views import MEAN, STD, make_images, packed

from smallvit.core.model_config import ModelConfig
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.models.registry import model_arguments

MODEL = "gani_vit"
NUM_CLASSES = 10
AUGMENT = replace(CONFIG.augment, crop="resized", policy="autoaugment-imagenet")
PRECISIONS: dict[str, Literal["bf16", "fp32"]] = {"bf16": "bf16", "float32": "fp32"}


class TimmTrainer:
    """The loop of timm's train.py.

    Args:
        folder: Class folders of images.
        batch_size: Images of a step.
        precision: As of ``--amp --amp-dtype bfloat16``, or without.
    """

    def __init__(self, folder: Path, batch_size: int, precision: Literal["bf16", "fp32"]) -> None:
        config, num_classes = ModelConfig(name=MODEL), count_classes(folder)
        name, arguments = model_arguments(config, num_classes=num_classes, image_size=IMAGE_SIZE)
        self.model = timm.create_model(name.removeprefix("timm/"), **arguments).train()
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=CONFIG.optim.lr, weight_decay=CONFIG.optim.weight_decay
        )
        dataset: Any = create_dataset("", root=str(folder), is_training=True)
        self.loader = create_loader(
            dataset,
            input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
            batch_size=batch_size,
            is_training=True,
            re_prob=AUGMENT.erasing_prob,
            re_mode="pixel",
            scale=AUGMENT.scale,
            ratio=AUGMENT.ratio,
            color_jitter=0.0,
            auto_augment="original",
            interpolation="bicubic",
            mean=MEAN,
            std=STD,
            num_workers=torch.get_num_threads(),
            device=torch.device("cpu"),
        )
        self.mixup = Mixup(
            mixup_alpha=AUGMENT.mixup_alpha,
            cutmix_alpha=AUGMENT.cutmix_alpha,
            prob=AUGMENT.mix_prob,
            label_smoothing=CONFIG.method.label_smoothing,
            num_classes=num_classes,
        )
        self.criterion = SoftTargetCrossEntropy()
        self.bf16 = precision == "bf16"

    def run(self) -> float:
        """Train for one pass; return images a second."""
        start, seen = time.perf_counter(), 0
        for images, labels in self.loader:
            mixed, target = self.mixup(images, labels)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.criterion(self.model(mixed), target)
            loss.backward()
            dispatch_clip_grad(self.model.parameters(), CONFIG.optim.grad_clip_norm or 1e9)
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()
            seen += len(images)
        return seen / (time.perf_counter() - start)


def count_classes(folder: Path) -> int:
    """Return the number of class folders."""
    return sum(path.is_dir() for path in folder.iterdir())


def compare_timm(
    pixels: UInt8[Tensor, "N 3 H W"], folder: Path, batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Time stage 2 and timm's loop in turn, in both precisions."""
    steps = len(pixels) // batch_size
    ways = {}
    for name, precision in PRECISIONS.items():
        runtime = open_runtime(RuntimeConfig(device="cpu", precision=precision))
        dataset = with_classes(packed(pixels, runtime.device), count_classes(folder))
        ours = Way(dataset, MODEL, batch_size, None, runtime, AUGMENT)
        ways[f"ours, {name}"] = lambda ours=ours: steps * batch_size / ours.train(steps)
        ways[f"timm, {name}"] = TimmTrainer(folder, batch_size, precision).run
    found = alternate(ways, rounds)
    speeds = {name: statistics.median(values) for name, values in found.items()}
    said = ", ".join(f"{name} {speed:,.1f}" for name, speed in speeds.items())
    print(f"supervised steps of {batch_size}, images/s: {said}", flush=True)
    return [
        state(
            f"supervised steps of {MODEL}, data included: stage 2 without token labels against "
            f"the loop of timm {timm.__version__}'s train.py, both in {name}",
            speeds[f"ours, {name}"],
            speeds[f"timm, {name}"],
            "images/s",
        )
        for name in PRECISIONS
    ]


def missing_packages(python: str) -> list[str]:
    """Return which of the packages that lightly-train's steps need an interpreter lacks."""
    check = (
        "import importlib.util as u, sys; print([n for n in sys.argv[1:] if not u.find_spec(n)])"
    )
    command = [python, "-c", check, "lightly_train", "timm"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [f"a Python at {python}"]
    return json.loads(said.replace("'", '"'))


def lightly_train_settings(
    folder: Path, out: Path, precision: Literal["bf16", "fp32"]
) -> dict[str, Any]:
    """Return the arguments of ``lightly_train.pretrain`` that make it do the same work."""
    name, arguments = model_arguments(pretrain.MODEL, num_classes=0, image_size=pretrain.IMAGE_SIZE)
    method, views = pretrain.METHOD, pretrain.METHOD.views
    local = round(views.local_size * IMAGE_SIZE)
    return {
        "out": str(out),
        "data": str(folder),
        "overwrite": True,
        "model": f"timm/{name.removeprefix('timm/')}",
        "model_args": arguments,
        "method": "dino",
        "method_args": {
            "hidden_dim": method.hidden_dim,
            "bottleneck_dim": method.bottleneck_dim,
            "output_dim": method.num_prototypes,
        },
        "transform_args": {
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "local_view": {"num_views": views.num_local, "view_size": [local, local]},
        },
        "epochs": 1,
        "batch_size": pretrain.BATCH,
        "num_workers": torch.get_num_threads(),
        "accelerator": "cpu",
        "devices": 1,
        "precision": "bf16-mixed" if precision == "bf16" else "32-true",
        "callbacks": {"model_checkpoint": None, "learning_rate_monitor": None},
        "loggers": {"tensorboard": None, "jsonl": None},
    }


def run_lightly_train(
    python: str, folder: Path, precision: Literal["bf16", "fp32"]
) -> tuple[float, str]:
    """Train for one pass in a process of its own; return images a second and its version."""
    script = Path(__file__).with_name("lightly_train_steps.py")
    with tempfile.TemporaryDirectory() as out:
        settings = lightly_train_settings(folder, Path(out) / "run", precision)
        command = [python, "-W", "ignore", str(script), json.dumps({"pretrain": settings})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lightly-train failed: {done.stderr.strip().splitlines()[-1]}")
    said = json.loads(done.stdout.strip().rpartition("\n")[2])
    return pretrain.BATCH / statistics.median(said["seconds"]), said["version"]


def compare_lightly_train(
    pixels: UInt8[Tensor, "N 3 H W"], folder: Path, python: str, rounds: int
) -> list[dict[str, Any]]:
    """Time stage 1 and lightly-train's DINO in turn, in both precisions."""
    steps = len(pixels) // pretrain.BATCH
    versions: list[str] = []

    def theirs(precision: Literal["bf16", "fp32"]) -> float:
        speed, version = run_lightly_train(python, folder, precision)
        versions.append(version)
        return speed

    claims = []
    for name, precision in PRECISIONS.items():
        ours = pretrain.Ours(pixels, precision)
        found = alternate(
            {
                "ours": lambda ours=ours: steps * pretrain.BATCH / ours.run(steps).total,
                "lightly-train": lambda precision=precision: theirs(precision),
            },
            rounds,
        )
        speeds = {way: statistics.median(values) for way, values in found.items()}
        said = ", ".join(f"{way} {speed:,.1f}" for way, speed in speeds.items())
        print(f"stage-1 steps of {pretrain.BATCH} in {name}, images/s: {said}", flush=True)
        claims.append(
            state(
                f"stage-1 steps of {MODEL} with 2 + 8 views, data included, against DINO of "
                f"lightly-train {versions[0]}, both in {name}",
                speeds["ours"],
                speeds["lightly-train"],
                "images/s",
            )
        )
    return claims


@contextmanager
def image_folder(given: Path | None, count: int) -> Iterator[tuple[Path, Tensor]]:
    """Yield a folder of JPEG files in class folders, and the same images packed."""
    if given is not None:
        yield given, pretrain.read_images(given)
        return
    pixels = make_images(count)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            path = folder / str(i % NUM_CLASSES) / f"{i:06}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path, quality=95)
        yield folder, pixels


def main() -> None:
    """Time what is here and print the claims as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer images, small batches")
    parser.add_argument("--python", default=sys.executable, help="interpreter with lightly-train")
    parser.add_argument("--data", type=Path, help="folder of class folders; made images without")
    given = parser.parse_args()
    count, batch_size, rounds = (
        (2 * pretrain.BATCH, 32, 1) if given.quick else (1024, CONFIG.optim.batch_size, 3)
    )
    with image_folder(given.data, count) as (folder, pixels):
        claims = compare_timm(pixels, folder, batch_size, rounds)
        if missing := missing_packages(given.python):
            print(
                f"lightly-train left out: {given.python} has no {' and no '.join(missing)}; "
                "install both in an environment of its own and name it with --python"
            )
        else:
            claims += compare_lightly_train(pixels, folder, given.python, rounds)
    print_claims(claims)


if __name__ == "__main__":
    main()
