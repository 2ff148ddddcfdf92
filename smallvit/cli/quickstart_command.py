"""``smallvit quickstart``."""

import time
from pathlib import Path

from smallvit.cli.options import GivenOptions
from smallvit.core import places
from smallvit.core.console import say
from smallvit.core.run_folder import new_folder
from smallvit.runs.recipe import load_recipe

RECIPE = "digits/vit_tiny"
NEXT = """
What to run next:
  smallvit pretrain --dataset cifar100      stage 1 on a data set by name (smallvit data ls)
  smallvit finetune --token-label           stage 2 from there, with a teacher's score maps
  smallvit bench                            a leaderboard of every fine-tuned run
  smallvit run generic/32px --data FOLDER   all of it on your own pictures, one folder a class
"""


def quickstart_command(*, out: Path | None = None, given: GivenOptions) -> None:
    """Run the whole pipeline on scikit-learn's digits, offline on the CPU.

    It pretrains a small ViT, trains a CNN teacher, writes its score maps, fine-tunes four arms
    with equal supervised passes, and writes a leaderboard.

    Args:
        out: Folder of all its runs; by default a new one under the runs folder.
        given: What of these was given.
    """
    from smallvit.leaderboard.runner import bench_runs
    from smallvit.runs.chain import run_recipe

    start = time.monotonic()
    recipe, name = load_recipe(RECIPE, {"runtime": {"device": "cpu"}})
    say(f"recipe: {name}")
    folder = out or new_folder(places.runs_dir(), "digits", "quickstart")
    folder, runs = run_recipe(recipe, out=folder, argv=given.argv)
    bench_runs(runs, folder / "leaderboard", title="Quickstart: what each stage brought")
    say(f"quickstart took {time.monotonic() - start:.0f} s\n{NEXT}")
