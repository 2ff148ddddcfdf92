"""Every precision goes through every command on a CPU."""

from pathlib import Path

import pytest

from smallvit.cli.app import main
from smallvit.core.run_folder import Run
from smallvit.runs.label import SCORE_MAPS


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_goes_from_the_teacher_to_the_leaderboard(precision, tiny, tmp_path):
    shared = ["--recipe", tiny, "--precision", precision]
    teacher, maps, student = (str(tmp_path / name) for name in ("teacher", "maps", "student"))
    assert main(["teacher", *shared, "--out", teacher]) == 0
    assert main(["label", "--teacher", teacher, "--precision", precision, "--out", maps]) == 0
    token_labels = ["--token-label", "--init", "scratch", "--score-maps", f"{maps}/{SCORE_MAPS}"]
    assert main(["finetune", *shared, *token_labels, "--epochs", "1", "--out", student]) == 0
    assert Run(Path(student)).env["precision"] == precision
    assert main(["eval", student, "--precision", precision]) == 0
    page = ["--precision", precision, "--out", str(tmp_path / "page")]
    assert main(["bench", student, *page]) == 0


def test_token_labels_make_what_is_missing_in_float16(tiny, tmp_path):
    words = ["--token-label", "--init", "scratch", "--epochs", "1", "--precision", "fp16"]
    assert main(["finetune", "--recipe", tiny, *words, "--out", str(tmp_path / "run")]) == 0
