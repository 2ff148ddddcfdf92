"""Score maps and exports that are damaged, made to do harm, or of something else."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from smallvit.cli.app import main
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.teachers.score_maps import ScoreMapHeader, ScoreMaps, write_score_maps

RECIPE = {
    "data": {"dataset": "digits"},
    "model": {"name": "vit_tiny", "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "finetune": {"optim": {"batch_size": 16}, "schedule": {"epochs": 0.05, "warmup_epochs": 0.0}},
}
OF_DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache: Path) -> Dataset:
    return load_dataset(DataConfig(dataset="digits"), data_dir=cache, cache_dir=cache)


@pytest.fixture(autouse=True)
def own_places(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(cache))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def write_maps(path: Path, dataset: Dataset, **changes: Any) -> Path:
    """Write maps of a data set, each flat, whose header says something else."""
    maps = ScoreMaps.from_batch(torch.full((len(dataset.splits["labelled"]), 10, 4, 4), 0.1), 1)
    header: dict[str, Any] = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split_hash": dataset.split_hashes["labelled"],
        "class_names": dataset.class_names,
        "grid": (4, 4),
        "image_size": dataset.image_size,
        "teacher": "resnet8_small",
        "teacher_hash": "d" * 64,
        "teacher_train_top1": 1.0,
        "teacher_val_top1": 0.9,
        "extra_data": "none",
    }
    write_score_maps(path, maps, ScoreMapHeader(**(header | changes)))
    return path


def finetune(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Train on maps for a moment and return the exit code and the last line."""
    words = ["--token-label", "--score-maps", str(path), "--out", "run", *more]
    code = main(["finetune", "--recipe", "recipe.yaml", *words])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def test_maps_of_this_data_are_taken(digits, tmp_path, capsys):
    path = write_maps(tmp_path / "maps.safetensors", digits)
    assert finetune(path, capsys, "--dry-run")[0] == 0


OTHERS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "images": ({"fingerprint": "f" * 64}, [], "for other images (ffffffffffff, here"),
    "split or order": ({"split_hash": "0" * 64}, [], "other training split (000000000000, here"),
    "a split of another seed": ({}, ["--data.split-seed", "7"], "for other training split"),
    "a part of the labels": ({}, ["--data.label-fraction", "0.5"], "for other training split"),
    "order of classes": (
        {"class_names": OF_DIGITS[::-1]},
        [],
        "for other classes (class 0 is '9', here '0')",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_maps_of_something_else_are_refused_and_nothing_is_written(digits, tmp_path, capsys, what):
    changes, more, message = OTHERS[what]
    path = write_maps(tmp_path / "maps.safetensors", digits, **changes)
    before = path.read_bytes()
    code, line = finetune(path, capsys, *more)
    assert (code, message in line) == (3, True), line
    assert line.startswith("smallvit: ")
    assert not (tmp_path / "run").exists()
    assert path.read_bytes() == before


def harm_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def claim_size(header: dict[str, Any]) -> None:
    header["prob"]["shape"] = [2**60, 1, 4, 4]


def go_past_the_end(header: dict[str, Any]) -> None:
    header["rest"]["data_offsets"] = [0, 2**60]


def overlap(header: dict[str, Any]) -> None:
    header["rest"]["data_offsets"] = header["prob"]["data_offsets"]


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "a header of 2**60 bytes": lambda content: struct.pack("<Q", 2**60) + content[8:],
    "a header past the end": lambda content: struct.pack("<Q", len(content)) + content[8:],
    "a header that is no JSON": lambda content: struct.pack("<Q", 2) + b"{{" + content,
    "brackets in brackets": lambda content: struct.pack("<Q", 80_000) + b"[" * 80_000,
    "2**60 images": lambda content: harm_header(content, claim_size),
    "offsets past the end": lambda content: harm_header(content, go_past_the_end),
    "overlapping tensors": lambda content: harm_header(content, overlap),
    "a pickle": lambda content: b"cos\nsystem\n(S'touch harmed'\ntR.",
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_made_to_do_harm_is_one_line(digits, tmp_path, capsys, harm):
    path = write_maps(tmp_path / "maps.safetensors", digits)
    path.write_bytes(HARMS[harm](path.read_bytes()))
    code, line = finetune(path, capsys)
    assert (code, line.startswith(f"smallvit: {path} is no whole safetensors file")) == (3, True)
    assert "write it again with smallvit label" in line
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("harm", HARMS)
def test_an_export_made_to_do_harm_is_one_line(tmp_path, capsys, harm):
    folder = tmp_path / "export"
    folder.mkdir()
    arguments = {"img_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"prob": torch.zeros(4), "rest": torch.zeros(4)}
    save_file(weights, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(HARMS[harm](content))
    words = ["--recipe", "recipe.yaml", "--init", str(folder), "--out", "run"]
    assert main(["finetune", *words]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"smallvit: {folder} is no whole export")
    assert not (tmp_path / "harmed").exists()
