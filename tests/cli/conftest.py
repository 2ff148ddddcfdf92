import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

TINY = {
    "data": {"dataset": "digits", "label_fraction": 0.2},
    "model": {
        "name": "vit_tiny",
        "patch_size": 2,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path_rate": 0.2,
    },
    "log": {"every_steps": 5},
    "pretrain": {
        "method": {
            "num_prototypes": 16,
            "hidden_dim": 16,
            "bottleneck_dim": 8,
            "views": {"num_local": 2},
        },
        "optim": {"batch_size": 32},
        "schedule": {"epochs": 1.0},
    },
    "teacher": {
        "model": {"name": "resnet8_small", "width": 8, "stride": 2},
        "optim": {"batch_size": 32},
        "schedule": {"epochs": 8.0},  # well above chance, which `label` asks for
    },
    "finetune": {
        "optim": {"batch_size": 32},
        "schedule": {"epochs": 4.0, "warmup_epochs": 1.0, "eval_epochs": 2.0},
    },
}


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained() -> dict[tuple[str, ...], Path]:
    """Runs of the tiny recipe by the words that made them."""
    return {}


@pytest.fixture(autouse=True)
def places(
    session_cache: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(session_cache))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    assert os.environ["SMALLVIT_RUNS_DIR"]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A recipe whose stages take a second each."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture
def copy_run(
    trained: dict[tuple[str, ...], Path], tiny: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Copy a run of the tiny recipe; the first test that asks for it trains it."""
    from smallvit.cli.app import main

    def copy(out: Path, stage: str, *more: str) -> Path:
        if (stage, *more) not in trained:
            run = tmp_path_factory.mktemp("trained") / "run"
            assert main([stage, "--recipe", tiny, *more, "--out", str(run)]) == 0
            trained[stage, *more] = run
        return Path(shutil.copytree(trained[stage, *more], out))

    return copy
