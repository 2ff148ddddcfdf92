"""Stage 1: a step of view prediction against the paper's own training loop, data included.

Both train the ViT of Gani et al. on 2 views of 32 px and 8 of 16 px of each image, with the same
weights, head, loss, batch and threads. Ours is the step of ``smallvit pretrain``: views made in
batches from packed images, one pass for all views of a size, one call for the update and one for
the momentum teacher. It runs in bfloat16 (``--runtime.precision bf16``), and once more in float32,
which shows how much of the gain is precision. The reference is a rendering of the authors' loop:
float32, PIL views of one image at a time in a DataLoader with one worker a core, timm's own model
with torch's default attention, Python loops over the parameters for clipping and for the momentum
teacher, and the loss on the host at every step. Its loss must equal ours on a common batch.

All are timed alternately in one process, on the same threads; a figure is the median of the rounds.
So the reference, too, keeps the memory that a step frees; in a process of its own it is no faster.

    python benchmarks/pretrain.py [--quick] [--data FOLDER]

Shapes in this file:
    V    views
    B    images
    K    prototypes
    N    images of the data set
    H W  view in pixels
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from views import PerImage, make_images, packed, view_transforms

from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import environment
from smallvit.core.schedule import cosine
from smallvit.data.batches import ViewBatch
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.order import Order
from smallvit.data.views import ViewBatches
from smallvit.engine.config import OptimConfig, RuntimeConfig, ScheduleConfig
from smallvit.engine.optim import create_optimizer, set_schedule
from smallvit.engine.runtime import open_runtime
from smallvit.engine.step import train_step
from smallvit.models.registry import create_backbone, model_arguments
from smallvit.models.vit import VitBackbone
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective

MODEL = ModelConfig(name="gani_vit")
METHOD = DinoConfig()
BATCH = 64
CLIP = 3.0
DECAY = (0.04, 0.4)  # weight decay of the first step and of the last
OPTIM = OptimConfig(
    lr=2e-4,
    batch_size=BATCH,
    weight_decay=DECAY[0],
    weight_decay_end=DECAY[1],
    decay="matrices",
    grad_clip_norm=CLIP,
    grad_clip_mode="parameter",
)
SCHEDULE = ScheduleConfig(epochs=200, warmup_epochs=30)
TOTAL_STEPS = 10_000
FIRST_STEP = 100  # beyond the first pass, in which the prototypes are frozen
IMAGE_SIZE = 32
BF16, FLOAT32, REFERENCE = "ours, bf16", "ours, float32", "reference, float32"
PARTS: tuple[str, str, str] = (
    "views",
    "forward, backward and clipping",
    "optimizer and momentum teacher",
)


class Stopwatch:
    """Seconds spent in each part of the steps.

    Attributes:
        seconds: By part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.start = time.perf_counter()

    def lap(self, part: str) -> None:
        """Book the time since the last call on a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.start
        self.start = now

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def create_objective() -> DinoObjective:
    """Build student, momentum teacher and heads, with the same weights always."""
    torch.manual_seed(0)
    backbone = create_backbone(MODEL, num_classes=0, image_size=IMAGE_SIZE)
    assert isinstance(backbone, VitBackbone)
    backbone.published_positions = False  # the reference calls timm's forward pass
    return DinoObjective(backbone, METHOD).train()


class Ours:
    """Stage 1 as ``smallvit pretrain`` runs it.

    Args:
        pixels: The images.
        precision: As in ``--runtime.precision``.
    """

    def __init__(
        self, pixels: UInt8[Tensor, "N 3 H W"], precision: Literal["bf16", "fp32"]
    ) -> None:
        self.runtime = open_runtime(RuntimeConfig(device="cpu", precision=precision))
        order = Order(len(pixels), BATCH, 0, self.runtime.device)
        dataset = packed(pixels, self.runtime.device)
        self.batches = ViewBatches(dataset, order, METHOD.views, TOTAL_STEPS)
        self.objective = create_objective()
        self.optimizer = create_optimizer(self.objective, OPTIM)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.step = FIRST_STEP

    def run(self, steps: int) -> Stopwatch:
        """Take some steps."""
        watch = Stopwatch()
        hook = self.optimizer.register_step_pre_hook(lambda *_: watch.lap(PARTS[1]))
        for _ in range(steps):
            batch = self.batches(self.step)
            watch.lap(PARTS[0])
            set_schedule(self.optimizer, OPTIM, SCHEDULE, step=self.step, total_steps=TOTAL_STEPS)
            train_step(
                self.objective,
                batch,
                self.optimizer,
                self.parameters,
                grad_clip_norm=OPTIM.grad_clip_norm,
                grad_clip_mode=OPTIM.grad_clip_mode,
                runtime=self.runtime,
            )
            self.step += 1
            self.objective.after_step(self.step / TOTAL_STEPS)
            watch.lap(PARTS[2])
        hook.remove()
        return watch


class MultiCrop(nn.Module):
    """Network and head of the reference: views of one size in one pass, then all in the head."""

    def __init__(self) -> None:
        super().__init__()
        name, arguments = model_arguments(MODEL, num_classes=0, image_size=IMAGE_SIZE)
        self.backbone = timm.create_model(name.removeprefix("timm/"), **arguments)
        embed_dim: int = self.backbone.num_features  # pyright: ignore[reportAssignmentType]
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, METHOD.hidden_dim),
            nn.GELU(),
            nn.Linear(METHOD.hidden_dim, METHOD.hidden_dim),
            nn.GELU(),
            nn.Linear(METHOD.hidden_dim, METHOD.bottleneck_dim),
        )
        with warnings.catch_warnings():
            # As published; torch has a newer one.
            warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
            self.last = nn.utils.weight_norm(
                nn.Linear(METHOD.bottleneck_dim, METHOD.num_prototypes, bias=False)
            )
        self.last.weight_g.requires_grad_(False)

    def forward(self, views: Sequence[Float[Tensor, "B 3 _ _"]]) -> Float[Tensor, "V*B K"]:
        """Return the outputs of views that are sorted by size, the large ones first."""
        sizes = sorted({view.shape[-1] for view in views}, reverse=True)
        features = [
            self.backbone(torch.cat([view for view in views if view.shape[-1] == size]))
            for size in sizes
        ]
        return self.last(F.normalize(self.mlp(torch.cat(features)), dim=-1))

    def copy_from(self, backbone: nn.Module, head: nn.Module) -> None:
        """Take the weights of one of our networks and its head, which have the same order."""
        self.backbone.load_state_dict(backbone.state_dict())
        own = [*self.mlp.parameters(), self.last.weight_g, self.last.weight_v]
        theirs = dict(head.named_parameters())
        last = [theirs.pop(f"last_layer.weight_{part}") for part in "gv"]
        with torch.no_grad():
            for mine, other in zip(own, [*theirs.values(), *last], strict=True):
                mine.copy_(other)


class Reference:
    """The authors' loop, rendered anew.

    Stochastic depth is off in the momentum teacher, where theirs keeps it on: the faster way.

    Args:
        pixels: The images.
        workers: Processes that make views.

    Source:
        Gani et al., 2022, https://arxiv.org/abs/2210.07240; what its steps do is read from
        hananshafi/vits-for-small-scale-datasets@43a7493, train_ssl.py and utils_ssl.py.
    """

    def __init__(self, pixels: UInt8[Tensor, "N 3 H W"], workers: int) -> None:
        self.images = PerImage(pixels, view_transforms())
        self.workers = workers
        self.loader: DataLoader | None = None
        self.student, self.teacher = MultiCrop().train(), MultiCrop().eval().requires_grad_(False)
        start = create_objective()
        self.student.copy_from(start.student.model, start.student_head)
        self.teacher.copy_from(start.ema_teacher.model, start.ema_teacher_head)
        decayed = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.student.parameters() if p.requires_grad and p.ndim == 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)
        self.center = torch.zeros(1, METHOD.num_prototypes)
        self.step = FIRST_STEP

    def loss(
        self, views: Sequence[Float[Tensor, "B 3 _ _"]], teacher_temp: float
    ) -> Float[Tensor, ""]:
        """Compare the student's views with the teacher's, pair by pair, and move the centre."""
        teacher = self.teacher(views[:2])
        targets = F.softmax((teacher - self.center) / teacher_temp, dim=-1).chunk(2)
        logs = F.log_softmax(self.student(views) / METHOD.student_temp, dim=-1).chunk(len(views))
        terms = [
            -(target * log).sum(dim=-1).mean()
            for i, target in enumerate(targets)
            for j, log in enumerate(logs)
            if i != j
        ]
        batch_center = teacher.mean(dim=0, keepdim=True)
        self.center = self.center * METHOD.center_momentum
        self.center += batch_center * (1 - METHOD.center_momentum)
        return torch.stack(terms).mean()

    def run(self, steps: int) -> Stopwatch:
        """Take some steps."""
        if self.loader is None:
            # An iteration ends with the last step: nothing is made beside what is timed next.
            sampler = RandomSampler(self.images, num_samples=steps * BATCH)
            self.loader = DataLoader(
                self.images,
                BATCH,
                sampler=sampler,
                num_workers=self.workers,
                persistent_workers=True,
            )
            for _ in self.loader:  # starts the workers
                pass
        watch = Stopwatch()
        for views in self.loader:
            watch.lap(PARTS[0])
            self._set_schedule()
            loss = self.loss(views, METHOD.teacher_temp)
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss of the reference is not finite")
            self.optimizer.zero_grad()
            loss.backward()
            clip_each(self.student.parameters())
            watch.lap(PARTS[1])
            self.optimizer.step()
            self._move_teacher()
            self.step += 1
            watch.lap(PARTS[2])
        return watch

    def _set_schedule(self) -> None:
        done = self.step / TOTAL_STEPS
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = cosine(OPTIM.lr, SCHEDULE.min_lr, done)
            if i == 0:
                group["weight_decay"] = cosine(*DECAY, done)

    @torch.no_grad()
    def _move_teacher(self) -> None:
        momentum = cosine(METHOD.momentum, 1.0, self.step / TOTAL_STEPS)
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for mine, other in pairs:
            mine.mul_(momentum).add_((1 - momentum) * other)


def clip_each(parameters: Iterable[nn.Parameter]) -> None:
    """Clip the gradient of each parameter by itself, as the authors do."""
    for parameter in parameters:
        if parameter.grad is not None:
            factor = CLIP / (parameter.grad.norm() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


def check_same_work(ours: Ours, reference: Reference) -> None:
    """Assert that both compute the same loss from the same weights, views and stochastic depth."""
    batch: ViewBatch = ours.batches(FIRST_STEP)
    assert batch.local_views is not None
    temp = ours.objective.config.target_temp(batch.epoch)
    torch.manual_seed(0)
    mine = ours.objective(batch).loss
    torch.manual_seed(0)
    other = reference.loss([*batch.global_views, *batch.local_views], temp)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=0)
    print(f"both compute a loss of {mine.item():.5f} from the same weights and views")


def read_images(folder: Path) -> Tensor:
    """Pack the images of a folder."""
    with tempfile.TemporaryDirectory() as cache:
        config = DataConfig(path=folder, image_size=IMAGE_SIZE)
        dataset = load_dataset(config, data_dir=Path(cache), cache_dir=Path(cache))
        split = dataset.splits["train"]
        return split.images[split.index].clone()


def main() -> None:
    """Time all ways and print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--data", type=Path, help="folder of images; made ones by default")
    arguments = parser.parse_args()
    steps, rounds = (2, 2) if arguments.quick else (4, 5)
    pixels = make_images(2048) if arguments.data is None else read_images(arguments.data)
    fp32, reference = Ours(pixels, "fp32"), Reference(pixels, torch.get_num_threads())
    ways = {BF16: Ours(pixels, "bf16"), FLOAT32: fp32, REFERENCE: reference}
    check_same_work(fp32, reference)
    watches: dict[str, list[Stopwatch]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            watch = way.run(steps)
            if number:  # the first round warms up
                watches[name].append(watch)

    images = steps * BATCH
    speeds = {name: images / statistics.median(w.total for w in watches[name]) for name in ways}
    print(
        f"images/s with {torch.get_num_threads()} threads, batches of {BATCH}, median of {rounds} "
        f"rounds of {steps} steps; then ms an image of each part:"
    )
    for name, found in watches.items():
        parts = (statistics.median(w.seconds[part] for w in found) for part in PARTS)
        costs = (f"{1e3 * s / images:.2f} {part}" for s, part in zip(parts, PARTS, strict=True))
        print(f"{name:18} {speeds[name]:6.1f}: {', '.join(costs)}")
    claims = {
        BF16: "stage 1 of gani_vit, 2 + 8 views, data included: ours in bf16 against the paper's "
        "own loop in float32",
        FLOAT32: "the same, ours in float32 too",
    }
    env = environment([])
    results = [
        {
            "claim": claim,
            "ours": round(speeds[name], 1),
            "reference": round(speeds[REFERENCE], 1),
            "ratio": round(speeds[name] / speeds[REFERENCE], 2),
            "unit": "images/s",
            "machine": env["machine"],
            "commit": env["commit"],
        }
        for name, claim in claims.items()
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
