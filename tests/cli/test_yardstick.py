"""What the end of a stage says of an accuracy that is none to go by."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.cli.app import main


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Class folders of which one has most images, and nothing to tell them apart by."""
    generator = np.random.default_rng(0)
    for name, count in (("cat", 60), ("dog", 20), ("owl", 20)):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / name / f"{i}.png")
    return tmp_path / "noise"


@pytest.mark.parametrize("stage", ["teacher", "finetune"])
def test_a_classifier_that_names_one_class_nearly_always_is_said_at_the_end(
    stage, noise, tiny, tmp_path, capsys
):
    run = tmp_path / "run"
    data = ["--data", str(noise), "--data.label-fraction", "1", "--data.image-size", "16"]
    arguments = [stage, "--recipe", tiny, *data, "--out", str(run), "--epochs", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if line.startswith(f"{stage}: "))
    found = json.loads((run / "result.json").read_text())["yardstick"]
    assert found["top1"] == json.loads((run / "result.json").read_text())["metrics"]["val/top1"]
    assert f"; naming 'cat' always {found['commonest_share']:.2%}" in line
    assert (", mean per class" in line) == found["uneven"]
    assert "; no accuracy to go by, " in line
    warning = " ".join(said.split())
    assert f"{stage}, on validation: {found['fault']}" in warning
    assert "train it for more passes (--epochs)" in warning
    assert f"{found['fault']}" in (run / "train.log").read_text()


def test_a_classifier_that_can_be_gone_by_is_shown_beside_the_commonest_class(
    tiny, tmp_path, capsys
):
    arguments = ["teacher", "--recipe", tiny, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "; naming '" in said
    assert "to go by" not in said
