"""Every model on this machine: size, cost, and training throughput behind the token interface.

Images a second of one forward and backward pass (float32 and, with autocast, bfloat16), at 32 px
unless another size is given. The claim: the token interface costs nothing, as the pass through the
interface is timed alternately with the same pass through the plain timm model.

    python benchmarks/models.py [--quick] [--img-size 32] [--only PATTERN]
"""

import argparse
import fnmatch
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from smallvit.core.model_config import ModelConfig
from smallvit.core.run_folder import environment
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.models.measure import measure
from smallvit.models.registry import create_backbone, own_models

QUICK = ("vit_tiny", "gani_swin", "resnet8_small")
# Multiply-adds of one timed batch: a second or so.
MACS_A_BATCH = 8e9


def images_per_s(
    ways: list[Callable[[Tensor], Tensor]], images: Tensor, dtype: torch.dtype, rounds: int
) -> list[float]:
    """Time each way forward and backward in turn; return the medians in images a second."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, found in zip(ways, times, strict=True):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
                loss = way(images).float().square().mean()
            loss.backward()
            found.append(time.perf_counter() - start)
    return [len(images) / statistics.median(found[1:]) for found in times]


def main() -> None:
    """Print the table, then one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three models, fewer rounds")
    parser.add_argument("--img-size", type=int, default=32, help="side in pixels")
    parser.add_argument("--only", default="*", help="names, with * and ?")
    given = parser.parse_args()
    open_runtime(RuntimeConfig(device="cpu"))
    warnings.filterwarnings("ignore", message="patches of .* px are larger")
    names = fnmatch.filter(QUICK if given.quick else own_models(), given.only)
    rounds = 2 if given.quick else 3
    print("model                parameters  multiply-adds   tokens   fp32 img/s   bf16 img/s")
    ours, reference = [], []
    for name in names:
        torch.manual_seed(0)
        backbone = create_backbone(
            ModelConfig(name=name), num_classes=10, image_size=given.img_size
        ).train()
        facts = measure(backbone, given.img_size)
        batch = max(4, min(256, int(MACS_A_BATCH / facts.macs)))
        images = torch.randn(batch, 3, given.img_size, given.img_size)
        ways = [lambda x, b=backbone: b.logits(b(x)), backbone.model]
        fp32 = images_per_s(ways, images, torch.float32, rounds)
        bf16 = images_per_s(ways[:1], images, torch.bfloat16, rounds)
        ours.append(fp32[0])
        reference.append(fp32[1])
        print(
            f"{name:20} {facts.parameters / 1e6:8.3f} M {facts.macs / 1e6:12,.1f} M "
            f"{facts.grid[0]:4} x {facts.grid[1]:<3} {fp32[0]:11.1f} {bf16[0]:12.1f}",
            flush=True,
        )
    env = environment([])
    print(
        json.dumps(
            {
                "claim": "training pass through the token interface against the plain timm model, "
                f"median over {len(names)} models",
                "ours": round(statistics.median(ours), 1),
                "reference": round(statistics.median(reference), 1),
                "ratio": round(
                    statistics.median(a / b for a, b in zip(ours, reference, strict=True)), 3
                ),
                "unit": "images/s",
                "machine": env["machine"],
                "commit": env["commit"],
            }
        )
    )


if __name__ == "__main__":
    main()
