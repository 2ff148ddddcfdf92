"""A run that takes a second, and the process of one that a fault is done to."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

RECIPE = {
    "data": {"dataset": "digits", "label_fraction": 0.1},
    "model": {"name": "vit_tiny", "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "log": {"every_steps": 1, "checkpoint_steps": 2},
    "finetune": {
        "init": "scratch",
        "optim": {"batch_size": 32},
        "schedule": {"epochs": 3.0, "warmup_epochs": 1.0},
    },
}
STOPPED_AT = 7  # of twelve steps, 4.2 an epoch; checkpoints after 2, 4, 6 and 7
AtStep = Callable[[int, Callable[[Any], Any]], Any]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that the digits are packed in once."""
    return tmp_path_factory.mktemp("cache")


def set_places(patch: pytest.MonkeyPatch, folder: Path, cache: Path) -> list[str]:
    patch.setenv("SMALLVIT_CACHE_DIR", str(cache))
    patch.setenv("SMALLVIT_RUNS_DIR", str(folder / "runs"))
    patch.setenv("SMALLVIT_OFFLINE", "1")
    patch.chdir(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return ["finetune", "--recipe", str(recipe)]


@pytest.fixture
def command(
    tmp_path: Path, packed: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the words of a run of twelve steps; folders are those of the test."""
    return set_places(monkeypatch, tmp_path, packed)


@contextmanager
def changed_batch(step: int, change: Callable[[Any], Any]) -> Iterator[None]:
    from smallvit.data.views import LabeledBatches

    draw = LabeledBatches.__call__

    def drawn(self: LabeledBatches, number: int, *more: Any) -> Any:
        batch = draw(self, number, *more)
        return change(batch) if number == step else batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabeledBatches, "__call__", drawn)
        yield


@pytest.fixture
def at_step() -> AtStep:
    """Change the batch of one step, or do something before it."""
    return changed_batch


@pytest.fixture(scope="session")
def two_runs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that came to its end and one that SIGTERM stopped."""
    from smallvit.cli.app import main

    folder = tmp_path_factory.mktemp("runs")

    def stop(batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        words = set_places(patch, folder, packed)
        assert main([*words, "--out", str(folder / "whole")]) == 0
        with changed_batch(STOPPED_AT - 1, stop):
            assert main([*words, "--out", str(folder / "stopped")]) == 143
    return folder


@pytest.fixture
def whole(two_runs: Path) -> Path:
    """Return the run that came to its end."""
    return two_runs / "whole"


@pytest.fixture
def stopped(two_runs: Path, command: list[str], tmp_path: Path) -> Path:
    """Return a copy of the stopped run."""
    del command  # whose folders hold for the test
    return Path(shutil.copytree(two_runs / "stopped", tmp_path / "stopped"))


@pytest.fixture
def start(command: list[str]) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start Python code in a process of its own; it is gone at the end of the test."""
    del command  # whose environment the process has
    started: list[subprocess.Popen[str]] = []

    def popen(code: str, *words: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*before, sys.executable, "-c", code, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "OMP_NUM_THREADS": "1",  # as in tests/conftest.py: other threads, other roundings
            },
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def same_weights() -> Callable[[Path, Path], bool]:
    """Tell whether two finished runs exported the same weights, bit for bit."""

    def same(left: Path, right: Path) -> bool:
        ours, theirs = (load_file(run / "export" / "model.safetensors") for run in (left, right))
        return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)

    return same
