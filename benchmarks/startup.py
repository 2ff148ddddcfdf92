"""How long ``smallvit`` takes to answer: its help, the help of each command, a dry run.

Each is a process of its own, timed from its start to its end. The reference is the usual way to
start, ``import torch, timm`` at the top of a script: a process that does nothing else. Both are
timed in turn; a figure is the median of the rounds, and the ratio is the reference's time over
ours. A dry run opens the digits, builds the network, takes a step and scores it by k-NN and by a
linear probe: it imports torch and timm too, so its ratio is below 1.

    python benchmarks/startup.py [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

from claims import alternate, print_claims, state

from smallvit.cli.app import COMMANDS

REFERENCE = "import torch, timm"
DRY_RUN = ("pretrain", "--dataset", "digits", "--dry-run", "--device", "cpu", "--offline")


def seconds_of(arguments: Sequence[str], cache: str) -> float:
    """Time one Python process; packed data goes in a cache of this script's own."""
    env = os.environ | {"SMALLVIT_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=env)
    return time.perf_counter() - start


def main() -> None:
    """Time all processes in turn and print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two commands and one round")
    quick = parser.parse_args().quick
    commands = ("pretrain", "bench") if quick else tuple(COMMANDS)
    processes = {
        "smallvit --help": ("--help",),
        **{f"smallvit {name} --help": (name, "--help") for name in commands},
        f"smallvit {' '.join(DRY_RUN[:4])}": DRY_RUN,
    }
    scripts = {name: ["-m", "smallvit", *words] for name, words in processes.items()}
    scripts[REFERENCE] = ["-c", REFERENCE]
    with tempfile.TemporaryDirectory() as cache:
        ways = {name: partial(seconds_of, arguments, cache) for name, arguments in scripts.items()}
        found = alternate(ways, 1 if quick else 5)
    medians = {name: statistics.median(values) for name, values in found.items()}
    reference = medians[REFERENCE]
    for name, seconds in medians.items():
        print(f"{seconds:6.2f} s  {name}")
    print_claims(
        [
            state(
                f"start to end of {name}, against a process that imports torch and timm",
                medians[name],
                reference,
                "s",
                ratio=reference / medians[name],
            )
            for name in processes
        ]
    )


if __name__ == "__main__":
    main()
