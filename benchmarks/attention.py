"""Attention on this machine: the implementation that models choose, against torch's fused one.

timm uses the fused one wherever torch has it. The table gives milliseconds of one forward and
backward pass, and of one forward pass, by dtype, heads and length; both ways are timed alternately
and a figure is the median of the rounds.

    python benchmarks/attention.py [--quick]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import nn

from smallvit.core.run_folder import environment
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.models.attention import choose_attention, prefers_fused

TOKENS_A_BATCH = 8192
LENGTHS = (17, 65, 101, 129, 197, 257, 513, 785, 1025)
SHAPES = ((12, 16), (3, 64))


def train(attention: nn.Module, x: torch.Tensor) -> None:
    """Run one forward and backward pass."""
    x.grad = None
    attention(x).sum().backward()


def infer(attention: nn.Module, x: torch.Tensor) -> None:
    """Run one forward pass."""
    with torch.no_grad():
        attention(x)


def median_ms(
    work: Callable[[nn.Module, torch.Tensor], None],
    ways: list[nn.Module],
    x: torch.Tensor,
    dtype: torch.dtype,
    rounds: int,
) -> list[float]:
    """Time each way in turn, several rounds; return the medians in milliseconds."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, found in zip(ways, times, strict=True):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
                work(way, x)
            found.append(time.perf_counter() - start)
    return [1e3 * statistics.median(found[1:]) for found in times]


def main() -> None:
    """Print the table, then one JSON object a dtype as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    quick = parser.parse_args().quick
    lengths, rounds = (LENGTHS[:2], 3) if quick else (LENGTHS, 7)
    env = environment(())
    open_runtime(RuntimeConfig(device="cpu"))  # as in a run, freed memory is kept
    print(f"{'dtype':9} heads x dim  tokens   plain   fused  chosen   plain   fused   (ms)")
    print(f"{'':31}train: forward + backward   forward alone")
    claims = []
    for dtype in (torch.float32, torch.bfloat16):
        ratios = []
        for num_heads, head_dim in SHAPES:
            for num_tokens in lengths:
                width = num_heads * head_dim
                ways: list[Any] = [Attention(width, num_heads, qkv_bias=True) for _ in range(3)]
                plain, fused, chosen = ways
                plain.fused_attn, fused.fused_attn = False, True
                choose_attention(chosen)
                batch = max(1, TOKENS_A_BATCH // num_tokens)
                x = torch.randn(batch, num_tokens, width, requires_grad=True)
                trained = median_ms(train, ways, x, dtype, rounds)
                inferred = median_ms(infer, ways[:2], x, dtype, rounds)
                ratios.append(trained[1] / trained[2])
                mark = "fused" if prefers_fused("cpu", dtype, num_tokens) else "plain"
                print(
                    f"{str(dtype)[6:]:9} {num_heads:5} x {head_dim:3} {num_tokens:7} "
                    f"{trained[0]:7.1f} {trained[1]:7.1f} {trained[2]:7.1f} "
                    f"{inferred[0]:7.1f} {inferred[1]:7.1f}   {mark}"
                )
        claims.append(
            {
                "claim": f"attention training steps in {str(dtype)[6:]}, chosen against fused, "
                f"median over {len(ratios)} shapes",
                "ours": round(statistics.median(ratios), 3),
                "reference": 1.0,
                "ratio": round(statistics.median(ratios), 3),
                "unit": "times as fast",
                "machine": env["machine"],
                "commit": env["commit"],
            }
        )
    print(json.dumps(claims))


if __name__ == "__main__":
    main()
