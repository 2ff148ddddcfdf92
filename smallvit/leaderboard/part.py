"""What a part of a leaderboard is: one measurement of finished runs, and the figures it gives.

Shapes in this file:
    N    images of a split
    C    classes
"""

import base64
import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smallvit.core import rng
from smallvit.core.console import track
from smallvit.core.run_folder import Run
from smallvit.data.dataset import Dataset, Split
from smallvit.data.views import eval_batches
from smallvit.engine.runtime import Runtime
from smallvit.evaluate.classify import predict_logits
from smallvit.evaluate.pixel_classifier import PixelClassifier
from smallvit.leaderboard.kept import KeptFile
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.models.tokens import AbstractBackbone
from smallvit.runs.monitor import EVAL_BATCH

Unit = Literal["fraction", "nats", "ratio", "count", "images/s", "ms", "MiB"]
Better = Literal["higher", "lower"]
Measured = dict[str, Any]


@dataclass(frozen=True)
class FigureKind:
    """What a group of figures is.

    Attributes:
        group: Heading that it stands under.
        label: What a column calls it; ``{}`` takes what is left of the path.
        unit: ``fraction`` is in [0, 1] and shown in percent.
        better: Which way is better; ``None`` where neither is.
        column: Whether the tables show it; the rest is drawn, or in the JSON alone.
    """

    group: str
    label: str
    unit: Unit = "fraction"
    better: Better | None = None
    column: bool = True


@dataclass(kw_only=True, eq=False)
class OpenedRun:
    """A run with its network and data on the device, and what was measured of it so far."""

    run: Run
    backbone: AbstractBackbone
    dataset: Dataset
    measured: list[Measured] = field(default_factory=list)

    @property
    def test(self) -> Split:
        """The images that all figures are of."""
        return self.dataset.splits["test"]

    @property
    def classifier(self) -> PixelClassifier:
        """The network, of colours in [0, 1]."""
        return PixelClassifier(self.backbone, self.dataset.mean, self.dataset.std)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the figures of a network and its test images depend on."""
        with (self.run.path / "export" / "model.safetensors").open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        return {"weights": weights, "test": self.run.env["split_hashes"]["test"]}

    @property
    def images(self) -> Hashable:
        """Equal for runs whose test images, and their size, are the same."""
        of_test = self.run.env["split_hashes"]["test"]
        return self.dataset.fingerprint, of_test, self.dataset.image_size

    def kept(
        self, name: str, runtime: Runtime | None, settings: Mapping[str, Any], **options: Any
    ) -> KeptFile:
        """Return the file of a measurement.

        Args:
            name: Name of the measurement.
            runtime: Where it is measured; ``None`` where figures do not depend on it.
            settings: What its figures depend on, beside weights, test images and ``runtime``.
            **options: Of ``KeptFile``.
        """
        of_runtime: dict[str, Any] = {"device": None}
        if runtime is not None:
            of_runtime = {"device": runtime.device.type, "precision": runtime.precision}
        key = {**self.identity, **of_runtime, **settings}
        return KeptFile(self.run.path, name, key, **options)

    def predict(
        self, split: str, runtime: Runtime
    ) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
        """Return the logits and labels of a split."""
        shown = self.batches(split, f"classifying {split}")
        return predict_logits(self.backbone, shown, autocast=runtime.autocast)

    def batches(self, split: str, shown: str) -> Iterable[tuple[Tensor, Tensor]]:
        """Walk the images and labels of a split, with a line of progress."""
        part = self.dataset.splits[split]
        batches = eval_batches(self.dataset, part, EVAL_BATCH)
        return track(batches, shown, math.ceil(len(part) / EVAL_BATCH))


def unpack_correct(accuracy: Mapping[str, Any]) -> Bool[np.ndarray, " N"]:
    """Return whether each test image is classified correctly, from the part of the accuracy."""
    packed = np.frombuffer(base64.b64decode(accuracy["correct"], validate=True), dtype=np.uint8)
    return np.unpackbits(packed, count=int(accuracy["summary"]["n"])).astype(bool)


def subset_positions(split: Split, config: BenchConfig) -> Int[Tensor, " n"]:
    """Return which images of a split are corrupted and attacked: the same for every run."""
    device = split.index.device
    if config.subset is None or config.subset >= len(split):
        return torch.arange(len(split), device=device)
    drawn = rng.permutation(config.seed, "bench/subset", 0, len(split), device)
    return drawn[: config.subset].sort().values


def subset_of(split: Split, config: BenchConfig) -> Split:
    """Return those images."""
    return split.pick(subset_positions(split, config))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement of a leaderboard.

    Attributes:
        figures: What it measures, by the path of the figure, in the order of the tables; an entry
            that ends in a slash stands for all that begin with it, and the longest fits.
        measure: Measures runs of one group and returns what it found of each, as it is kept: dicts
            of ``figures``, by path; ``protocol``, how each group of them was measured; and
            ``missing``, why a figure could not be had. What it has measured before it reads again.
        tasks: What of it is asked for, each measured by itself: the names of attacks, for example.
        together: What runs that are measured together have in common; by default each is alone.
        check: Opens what it needs beside the runs, before hours are spent on other parts.
        describe: Names runs of a group and the task, for who is told that it failed.
        is_required: Whether a run that it cannot be measured of is left out.
    """

    figures: Mapping[str, FigureKind]
    measure: Callable[
        [Sequence[OpenedRun], str, BenchConfig, Runtime], Sequence[Sequence[Measured]]
    ]
    tasks: Callable[[BenchConfig], Sequence[str]] = lambda config: ("",)
    together: Callable[[OpenedRun], Hashable] = lambda opened: opened.run.path
    check: Callable[[Dataset, str, BenchConfig], Any] = lambda *_: None
    describe: Callable[[Sequence[OpenedRun], str], str] = lambda group, task: str(group[0].run.path)
    is_required: bool = False
