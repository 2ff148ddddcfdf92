"""Several processes: gradients added up in one message, against DistributedDataParallel.

Two processes of one thread, joined by gloo, train the ViT of Gani et al. on 64 images of 32 px a
step, without augmentation, so that the network and the messages are all there is. Ours adds all
gradients up in one message after the backward pass; the reference wraps the same network in torch's
DistributedDataParallel with its defaults. Both take the same steps from the same weights: their
losses must agree. Timed alternately in the same two processes; a figure is the median of rounds.

    python benchmarks/processes.py [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from claims import print_claims, state
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone
from smallvit.parallel import processes

BATCH, CLASSES, SIDE = 32, 10, 32  # images of a process
COUNT = 2


class Way:
    """A network with its optimizer; ``parallel`` is what adds gradients up as it goes."""

    def __init__(self, *, ddp: bool) -> None:
        torch.manual_seed(0)
        backbone = create_backbone(
            ModelConfig(name="gani_vit"), num_classes=CLASSES, image_size=SIDE
        )
        network: nn.Module = backbone.model.eval()  # no stochastic depth: equal losses
        self.network = DistributedDataParallel(network) if ddp else network
        self.ddp = ddp
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(processes.number())
        self.images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
        self.labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)

    def run(self, steps: int) -> tuple[float, float]:
        """Return the seconds of some steps and the loss of the last one, over all processes."""
        start, loss = time.perf_counter(), torch.zeros(())
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.network(self.images), self.labels)
            if self.ddp:
                loss.backward()
            else:
                (loss / COUNT).backward()
                processes.add_up_gradients_(self.network.parameters())
            self.optimizer.step()
        seconds = time.perf_counter() - start
        return seconds, (processes.add_up_(loss.detach().clone()) / COUNT).item()


def work(rounds: int, steps: int, out: Path) -> None:
    """Time both ways in this process; the first one writes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ways = {"ours": Way(ddp=False), "reference": Way(ddp=True)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        losses = []
        for name, way in ways.items():
            dist.barrier()
            taken, loss = way.run(steps)
            losses.append(loss)
            if number:  # the first round warms up
                seconds[name].append(taken)
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[1]), losses
    if processes.is_first():
        medians = (str(statistics.median(values)) for values in seconds.values())
        out.write_text(" ".join(medians))
    dist.destroy_process_group()


def main() -> None:
    """Start two processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds, steps = (2, 2) if arguments.quick else (7, 8)
    if arguments.file is not None:
        work(rounds, steps, arguments.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(COUNT), __file__, "--file", str(file)]
        command += ["--quick"] if arguments.quick else []
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        ours, reference = (COUNT * BATCH * steps / float(s) for s in file.read_text().split())
    claim = (
        "gani_vit in two processes by gloo: gradients in one message against "
        "DistributedDataParallel"
    )
    print_claims([state(claim, ours, reference, "images/s")])


if __name__ == "__main__":
    main()
