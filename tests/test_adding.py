"""The worked examples of docs/adding.md, added to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^`(\S+)`:\n\n```(python|diff)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

MODEL = """
import torch
from smallvit.core.model_config import ModelConfig
from smallvit.models.registry import create_backbone, own_models
assert "vit_narrow" in own_models()
backbone = create_backbone(ModelConfig(name="vit_narrow", depth=1), num_classes=5, image_size=32)
assert backbone(torch.zeros(2, 3, 32, 32)).pooled.shape == (2, 96)
"""
METHOD = """
import torch
from smallvit.cli.app import main
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import get_method
from smallvit.pretraining.registry import create_objective
backbone = create_backbone(ModelConfig(depth=1, embed_dim=24), num_classes=0, image_size=16)
objective = create_objective(backbone, get_method("mean_color")(), image_size=16)
views = torch.zeros(1, 2, 3, 16, 16)
batch = ViewBatch(global_views=views, local_views=None, epoch=0.0, progress=0.0)
assert objective(batch).loss.isfinite()
assert main(["pretrain", "--help"]) == 0
"""


def examples(heading: str) -> list[tuple[str, str, str]]:
    """Return file, kind and text of the blocks under a heading."""
    text = (ROOT / "docs" / "adding.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return BLOCK.findall(section)


def apply(folder: Path, file: str, kind: str, body: str) -> None:
    """Write a new file, or make the changes of a diff, each of which must fit exactly once."""
    path = folder / file
    if kind == "python":
        path.write_text(body)
        return
    for hunk in body.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] == " ")
        text = path.read_text()
        assert text.count(old) == 1, f"{file}: {old}"
        path.write_text(text.replace(old, "".join(line[1:] for line in lines)))


@pytest.mark.parametrize(
    ("heading", "beside", "most", "check"),
    [
        ("A model", 1, 4, MODEL),  # the row in docs/models.md
        ("A method of stage 1", 2, 5, METHOD),  # a test and a recipe
    ],
)
def test_worked_example_is_added_in_the_files_it_shows(heading, beside, most, check, tmp_path):
    for name in ("smallvit", "tests/models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    found = examples(heading)
    assert 0 < len(found) <= most - beside
    for block in found:
        apply(tmp_path, *block)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
