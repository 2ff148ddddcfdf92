"""How much of this machine's matrix throughput a step of stage 1 reaches, and where the rest goes.

Ours is the step of ``smallvit pretrain`` (gani_vit, 2 + 8 views, as in benchmarks/pretrain.py):
views, forward and backward passes, clipping, optimizer and momentum teacher, all of it timed. Its
FLOPs are those of its matrix products and convolutions, counted by torch over one forward and
backward pass; views, norms, softmax and the optimizer count for none. The reference is the peak of
the same processor in the same run: a product of two large square matrices of the same dtype, the
best of several sizes, timed in turn with the steps. A figure is the median of the rounds, and the
ratio is the part of the peak that the step reaches.

The profiler's table says where the time of a step goes, in ms an image.

    python benchmarks/utilisation.py [--quick]
"""

import argparse
import statistics
import time
from collections import Counter
from typing import Literal

import torch
from claims import alternate, print_claims, state
from pretrain import BATCH, PARTS, Ours
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from views import make_images

SIDES = (1024, 2048, 4096)
DTYPES: dict[Literal["bf16", "fp32"], torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
# Operators of the profile by what they are for; the first that a name begins with counts. Their
# own time alone is added up, so none is counted twice.
KINDS = {
    "matrix products of linear layers": ("aten::addmm", "aten::mm", "aten::linear", "mkldnn"),
    "matrix products of attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot"),
    "convolutions": ("aten::convolution", "aten::mkldnn_conv", "aten::_conv", "aten::slow_conv"),
    "softmax": ("aten::_softmax", "aten::_log_softmax", "aten::softmax"),
    "norms": ("aten::native_layer_norm", "aten::native_batch_norm", "aten::layer_norm"),
    "GELU": ("aten::gelu",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::stack", "aten::clone"),
    "sums": ("aten::sum", "aten::mean"),
    "adding and scaling": ("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::neg"),
    "zeros": ("aten::fill_", "aten::zero_"),
    "optimizer": ("aten::_fused_adamw_", "aten::_foreach"),
    "random numbers": ("aten::bernoulli_", "aten::uniform_", "aten::normal_"),
}
OTHER = "everything else"


def kind_of(operator: str) -> str:
    """Return what an operator of the profile is for."""
    for kind, names in KINDS.items():
        if operator.startswith(names):
            return kind
    return OTHER


def count_flops(ours: Ours) -> int:
    """Count the floating-point operations of one forward and backward pass.

    A product and its sum are two of them.
    """
    batch = ours.batches(ours.step)
    with FlopCounterMode(display=False) as counter:
        with ours.runtime.autocast():
            output = ours.objective(batch)
        output.loss.backward()
    ours.objective.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def product_flops_per_s(side: int, dtype: torch.dtype) -> float:
    """Multiply two square matrices a few times; return operations a second."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    repeats = max(1, round(2048**3 / side**3))
    out = left @ right  # allocates, and chooses a kernel
    start = time.perf_counter()
    for _ in range(repeats):
        torch.matmul(left, right, out=out)
    return repeats * 2 * side**3 / (time.perf_counter() - start)


def breakdown(ours: Ours, steps: int) -> dict[str, float]:
    """Profile some steps; return ms an image by kind of operator, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ours.run(steps)
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    images = steps * BATCH
    return {kind: total / 1e3 / images for kind, total in spent.most_common()}


def main() -> None:
    """Print both precisions and where the time goes, then the claims as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, sizes and rounds")
    quick = parser.parse_args().quick
    steps, rounds, sides = (1, 1, SIDES[:1]) if quick else (4, 5, SIDES)
    pixels = make_images(256 if quick else 2048)
    claims = []
    for precision, dtype in DTYPES.items():
        ours = Ours(pixels, precision)
        flops = count_flops(ours)
        inner: list[float] = []

        def step(ours: Ours = ours, inner: list[float] = inner) -> float:
            watch = ours.run(steps)
            inner.append(steps / watch.seconds[PARTS[1]])
            return steps / watch.total

        found = alternate(
            {
                "step": step,
                **{
                    str(side): lambda side=side, dtype=dtype: product_flops_per_s(side, dtype)
                    for side in sides
                },
            },
            rounds,
        )
        reached = flops * statistics.median(found.pop("step"))
        passes = flops * statistics.median(inner[1:])
        side, peak = max(
            ((side, statistics.median(values)) for side, values in found.items()),
            key=lambda pair: pair[1],
        )
        print(
            f"{precision}, {torch.get_num_threads()} threads: {flops / BATCH / 1e9:.2f} GFLOP an "
            f"image, {1e3 * flops / reached / BATCH:.2f} ms an image, {reached / 1e9:,.0f} GFLOP/s "
            f"of {peak / 1e9:,.0f} (products of {side} x {side}), {reached / peak:.1%}; forward, "
            f"backward and clipping alone {passes / peak:.1%}"
        )
        for kind, spent in breakdown(ours, steps).items():
            print(f"  {spent:7.3f} ms an image: {kind}")
        claims.append(
            state(
                f"FLOP/s of whole stage-1 steps of gani_vit in {precision}, over those of a large "
                "matrix product",
                reached / 1e9,
                peak / 1e9,
                "GFLOP/s",
            )
        )
    print_claims(claims)


if __name__ == "__main__":
    main()
