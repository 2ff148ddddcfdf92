"""Measure smallvit on a CUDA device: everything in one call, one JSON file.

The stages are those of Gani's CIFAR-10 recipe, on a folder of class folders (packed once, in the
cache) or on made images, offline. What a part finds is written as soon as it ends, and a part that
fails says why and leaves the others alone. Without a CUDA device, or with --tiny, all of it runs at
a tiny size, which shows that the scripts work and nothing else.

    python benchmarks/gpu/run_all.py --out FILE [--data FOLDER] [--tiny] [--minutes M] [--full]
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import (
    busy_share,
    count_waits,
    flops_an_image,
    product_flops_per_s,
    seconds_of,
    time_steps,
)
from stages import KINDS, RECIPE, Kind, Stage, open_data, read_recipe
from torch import Tensor, nn

from smallvit.core.run_folder import environment, write_json
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.fit import fit

ROOT = Path(__file__).parents[2]
# TF32 is fp32 with torch.set_float32_matmul_precision("high").
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
SAMPLE = 64  # images of which operations are counted


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        batches: Batch sizes of steps; the first comes first and is that of the other parts.
        sides: Sides of the square matrices whose product is the peak.
        products: Products that are timed together.
        warm: Steps that warm up, and compile.
        steps: Steps that are timed together.
        clock_steps: Steps whose time stands for the whole recipe's.
        rounds: Times that steps are timed; the best counts.
    """

    batches: tuple[int, ...] = (512, 256, 1024)
    sides: tuple[int, ...] = (4096, 8192, 16384)
    products: int = 30
    warm: int = 20
    steps: int = 50
    clock_steps: int = 300
    rounds: int = 3


TINY = Size(batches=(8,), sides=(64,), products=2, warm=1, steps=1, clock_steps=2, rounds=1)


class Bench:
    """What the parts share.

    Args:
        data: Folder of class folders, or ``None``.
        tiny: Whether all is tiny.
        minutes: Time after which the grid of steps is left as it is.
    """

    def __init__(self, data: Path | None, *, tiny: bool, minutes: float) -> None:
        self.data = data
        self.tiny = tiny
        self.size = TINY if tiny else Size()
        self.ends = time.monotonic() + 60 * minutes
        self.cuda = torch.cuda.is_available() and not tiny
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.recipe = read_recipe(data, tiny=tiny)
        self.precisions = PRECISIONS if self.cuda else ("bf16", "fp32")
        self.peaks: dict[str, float] = {}
        self.counted: dict[Kind, float] = {}

    @functools.cached_property
    def dataset(self) -> Any:
        """The images, resident on the device."""
        return open_data(self.recipe, self.data, self.device)

    @contextmanager
    def stage(
        self,
        kind: Kind,
        *,
        precision: str = "bf16",
        compile: bool = True,
        batch_size: int | None = None,
        deterministic: bool = False,
    ) -> Iterator[Stage]:
        """Build one stage, and leave nothing of it behind."""
        config = RuntimeConfig(
            device="cuda" if self.cuda else "cpu",
            precision="fp32" if precision == "tf32" else precision,  # pyright: ignore[reportArgumentType]
            compile="on" if compile and self.cuda else "off",
            deterministic=deterministic,
        )
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            batch_size = batch_size or self.size.batches[0]
            yield Stage(kind, self.dataset, self.recipe, config, batch_size)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False
            torch.set_float32_matmul_precision("highest")
            if self.cuda:
                torch.compiler.reset()
                torch.cuda.empty_cache()

    def peak(self) -> dict[str, float]:
        """Operations a second of a large matrix product, by precision."""
        for precision in self.precisions:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            self.peaks[precision] = max(
                product_flops_per_s(side, DTYPES[precision], self.device, self.size.products)
                for side in self.size.sides
            )
        torch.set_float32_matmul_precision("highest")
        return self.peaks

    def flops(self, kind: Kind) -> float:
        """Operations of a forward and backward pass, an image; counted once."""
        if kind not in self.counted:
            size = min(SAMPLE, self.size.batches[0])
            with self.stage(kind, compile=False, batch_size=size) as stage:
                self.counted[kind] = flops_an_image(stage)
        return self.counted[kind]

    def waits(self) -> dict[str, Any]:
        """Waits of the host between two log lines: there should be none."""
        found = {}
        for kind, compile in itertools.product(KINDS, (False, True)):
            with self.stage(kind, compile=compile) as stage:
                name = f"{kind}, {'compiled' if compile else 'eager'}"
                found[name] = count_waits(stage, warm=self.size.warm, steps=self.size.steps)
        return found

    def busy(self) -> dict[str, Any]:
        """Part of the wall time in which the device computes."""
        found = {}
        for kind in KINDS:
            with self.stage(kind) as stage:
                found[kind] = busy_share(stage, warm=self.size.warm, steps=min(self.size.steps, 20))
        return found

    def views(self) -> dict[str, float]:
        """Images a second whose views or augmentation alone are made."""
        found = {}
        for kind in KINDS:
            with self.stage(kind) as stage:
                steps = self.size.steps

                def walk(stage: Stage = stage, steps: int = steps) -> None:
                    for step in range(steps):
                        stage.batches(step)

                walk()
                seconds = min(seconds_of(walk, self.device) for _ in range(self.size.rounds))
                found[kind] = steps * stage.optim.batch_size / seconds
        return found

    def clock(self) -> dict[str, Any]:
        """Time of the whole recipe's training steps, from that of a part of them."""
        found: dict[str, Any] = {"extrapolated": True, "without": "evaluations and checkpoints"}
        total = 0.0
        for kind in KINDS:
            section = getattr(self.recipe, kind)
            with self.stage(kind, batch_size=section.optim.batch_size) as stage:
                with stage.compiled():
                    first = seconds_of(functools.partial(stage.take_steps, 1), self.device)
                    stage.take_steps(self.size.warm)
                    steps = self.size.clock_steps
                    work = functools.partial(stage.take_steps, steps)
                    each = seconds_of(work, self.device) / steps
                seconds = first + each * stage.total_steps
                total += seconds
                found[kind] = {
                    "epochs": section.schedule.epochs,
                    "steps": stage.total_steps,
                    "steps_timed": steps,
                    "first_step_s": first,
                    "minutes": seconds / 60,
                }
        return {**found, "minutes": total / 60}

    def determinism(self) -> dict[str, Any]:
        """Whether two runs of the same steps end with the same bits, in deterministic mode."""
        found = {}
        for kind in KINDS:
            ends = []
            for _ in range(2):
                with self.stage(kind, deterministic=True) as stage:
                    with stage.compiled():
                        stage.take_steps(2 if self.tiny else 20)
                    ends.append(clone_state(stage.objective))
            found[kind] = {"equal": not differing(*ends), "differ": differing(*ends)[:5]}
        return found

    def resume(self) -> dict[str, Any]:
        """Whether a run that was stopped and resumed ends with the bits of an unbroken one."""
        steps = 4 if self.tiny else 20
        found = {}
        for kind in KINDS:
            whole, _ = self._fit(kind, steps, (steps,))
            resumed, first = self._fit(kind, steps, (steps // 2, steps))
            differ = differing(whole, resumed)
            found[kind] = {"equal": not differ, "differ": differ[:5], "resumed_at_step": first}
        return found

    def _fit(self, kind: Kind, steps: int, stops: Sequence[int]) -> tuple[dict[str, Tensor], int]:
        """Train in several sittings; return the last weights and the last sitting's first step."""
        weights: dict[str, Tensor] = {}
        taken: list[int] = []
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoints").mkdir()
            for sitting, stop in enumerate(stops):
                taken.clear()
                with self.stage(kind, deterministic=True) as stage:

                    def batches(step: int, stage: Stage = stage) -> Any:
                        taken.append(step)
                        return stage.batches(step)

                    plan = stage.plan(self.recipe, Path(folder), steps)
                    fit(stage.objective, batches, plan, resume=sitting > 0, stop_after=stop)
                    weights = clone_state(stage.objective)
        return weights, taken[0]

    def processes(self) -> dict[str, Any]:
        """Images a second of stage 1 with one process a device, on 1, 2, 4, ... devices."""
        devices = torch.cuda.device_count() if self.cuda else 0
        if devices < 2 or self.data is None:
            return {"devices": devices, "note": "needs two devices and --data"}
        found: dict[str, Any] = {"devices": devices}
        for count in sorted({*(2**i for i in range(devices.bit_length()) if 2**i <= devices)}):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                run_command(
                    ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)],
                    ["-m", "smallvit", "pretrain", "--recipe", RECIPE, "--data", str(self.data)],
                    ["--precision", "bf16", "--epochs", "3", "--out", str(out), "--offline"],
                )
                result = json.loads((out / "result.json").read_text())
                found[str(count)] = result["images_per_s"]
        return found

    def full(self) -> dict[str, Any]:
        """Both stages of the recipe to their ends, as a user runs them."""
        assert self.data is not None, "--full needs --data"
        found: dict[str, Any] = {}
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            pretrained = Path(folder) / "pretrain"
            init = {"pretrain": [], "finetune": ["--init", str(pretrained)]}
            for kind in KINDS:
                out = Path(folder) / kind
                run_command(
                    ["smallvit", kind, "--recipe", RECIPE, "--data", str(self.data), *init[kind]],
                    ["--precision", "bf16", "--out", str(out), "--offline"],
                )
                result = json.loads((out / "result.json").read_text())
                kept = ("steps", "passes", "wall_s", "images_per_s", "metrics")
                found[kind] = {key: result[key] for key in kept}
        return {**found, "minutes": (time.perf_counter() - start) / 60}

    def steps(self) -> list[dict[str, Any]]:
        """Speed of steps: both stages, each batch and precision, eager and compiled."""
        rows: list[dict[str, Any]] = []
        compiles = (True, False) if self.cuda else (False,)
        grid = itertools.product(self.size.batches, self.precisions, compiles, KINDS)
        for batch_size, precision, compile, kind in grid:
            row = {
                "stage": kind,
                "batch_size": batch_size,
                "precision": precision,
                "compiled": compile,
            }
            if time.monotonic() > self.ends:
                rows.append({**row, "error": "left out: the minutes were over"})
                continue
            try:
                with self.stage(
                    kind, precision=precision, compile=compile, batch_size=batch_size
                ) as stage:
                    size = self.size
                    row |= time_steps(stage, warm=size.warm, steps=size.steps, rounds=size.rounds)
                row["flops_per_s"] = row["images_per_s"] * self.flops(kind)
                row["of_peak"] = row["flops_per_s"] / self.peaks[precision]
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            print(f"  {row}", flush=True)
        return rows


def run_command(*words: list[str]) -> None:
    """Run a Python module with some words after it; an error tells the end of what it said."""
    command = [sys.executable, "-m", *(word for group in words for word in group)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")


def clone_state(module: nn.Module) -> dict[str, Tensor]:
    """Copy all weights and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Name the tensors that are not the same to the last bit."""
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def describe_device(cuda: bool) -> dict[str, Any]:
    """Return versions, machine and devices."""
    env = environment([])
    found: dict[str, Any] = {key: env[key] for key in ("machine", "commit", "dirty", "versions")}
    found |= {"python": env["python"], "devices": []}
    if cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            found["devices"].append(
                {
                    "name": facts.name,
                    "memory_gib": facts.total_memory / 2**30,
                    "processors": facts.multi_processor_count,
                    "capability": f"{facts.major}.{facts.minor}",
                }
            )
    return found


def main() -> None:
    """Run every part and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--data", type=Path, help="folder of class folders; made images by default")
    parser.add_argument("--tiny", action="store_true", help="at a tiny size, on the CPU")
    parser.add_argument("--minutes", type=float, default=25, help="then no new step is measured")
    parser.add_argument("--full", action="store_true", help="train the recipe to its end too")
    given = parser.parse_args()
    # As deterministic mode has it: read with the first product of the process, which comes before.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tiny = given.tiny or not torch.cuda.is_available()
    data = None if given.data is None else given.data.resolve()
    bench = Bench(data, tiny=tiny, minutes=given.minutes)
    parts: dict[str, Callable[[], Any]] = {
        "environment": lambda: describe_device(bench.cuda),
        "peak_flops_per_s": bench.peak,
        "flops_an_image": lambda: {kind: bench.flops(kind) for kind in KINDS},
        "clock": bench.clock,
        "host_waits": bench.waits,
        "busy": bench.busy,
        "views_images_per_s": bench.views,
        "determinism": bench.determinism,
        "resume": bench.resume,
        "processes": bench.processes,
        "steps": bench.steps,
    }
    if given.full:
        parts["full"] = bench.full
    report: dict[str, Any] = {
        "recipe": RECIPE,
        "device": bench.device.type,
        "tiny": tiny,
        "data": "made images" if data is None else data.name,
        "parts": {},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            found: dict[str, Any] = {"found": part()}
        except Exception as error:
            told = traceback.format_exc()
            found = {"error": f"{type(error).__name__}: {error}", "traceback": told}
        found["wall_s"] = round(time.perf_counter() - start, 2)
        report["parts"][name] = found
        write_json(given.out, report)
        print(f"{name}: {found.get('error', 'done')}, {found['wall_s']} s", flush=True)


if __name__ == "__main__":
    main()
