"""Scores of a run: every readout, what it is called, and what cannot be read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smallvit.cli.app import main
from smallvit.runs.score import evaluate_run


@pytest.fixture
def run(copy_run, tmp_path: Path) -> Path:
    return copy_run(tmp_path / "run", "finetune", "--epochs", "0.2")


def constant_head(run: Path, best: int) -> None:
    """Put a token head into an export that says one class of every token."""
    head = nn.Linear(16, 10)
    nn.init.zeros_(head.weight)
    head.bias.data = 100 * torch.eye(10)[best]
    save_file(head.state_dict(), run / "export" / "token_head.safetensors")


def test_readouts_are_scored_and_named_with_the_head_that_they_read(run, capsys):
    plain = evaluate_run(run)
    assert set(plain.metrics) == {"top1", "top5", "nll", "n", "commonest", "mean_per_class"}
    assert (plain.readout, plain.reads) == ("cls", "image classifier on pooled features")
    shared = evaluate_run(run, readout="mean")
    assert shared.reads == "mean over tokens of the image classifier, which tokens share"
    assert shared.metrics["nll"] != plain.metrics["nll"]
    constant_head(run, best=3)
    # The head of one class outweighs the classifier: both are right where the label is that class.
    for readout in ("cls+max", "mean"):
        capsys.readouterr()
        assert main(["eval", str(run), "--readout", readout]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"run on val, readout {readout} " in said
        assert "over tokens of the auxiliary token head" in said
        share = evaluate_run(run, readout=readout).metrics["top1"]
        assert share == pytest.approx(12 / 147)  # that class's part of digits' validation
        assert f"{share:.2%}" in said
    assert evaluate_run(run, readout="cls") == plain


def test_a_head_of_another_network_ends_with_exit_3(run, capsys):
    save_file(nn.Linear(8, 10).state_dict(), run / "export" / "token_head.safetensors")
    assert main(["eval", str(run)]) == 3
    assert "does not fit vit_tiny" in capsys.readouterr().err


@pytest.mark.parametrize("readout", ["max", "cls,mean"])
def test_an_unknown_readout_ends_with_exit_2(readout, capsys):
    assert main(["eval", "runs/none", "--readout", readout]) == 2
    assert "cls+max" in capsys.readouterr().err


def test_a_run_without_a_classifier_has_no_readout(tiny, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["pretrain", "--recipe", tiny, "--out", run, "--epochs", "0.1"]) == 0
    assert main(["eval", run, "--knn", "--readout", "mean"]) == 2
    assert "without a classifier: leave --readout mean out" in capsys.readouterr().err


def test_an_accuracy_stands_beside_that_of_naming_the_commonest_class(run, capsys):
    constant_head(run, best=3)
    capsys.readouterr()
    assert main(["eval", str(run), "--readout", "mean"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    scored = evaluate_run(run, readout="mean")
    assert f"naming {scored.commonest!r} always" in said
    assert f"{scored.metrics['commonest']:.2%}" in said
    assert "it names '3' for 100.00 % of the images" in said
    assert scored.fault
