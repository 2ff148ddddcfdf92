"""The benchmarks compare what they say: references do the same work, and the table adds up."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NO_CLAIM = {"claims", "run_all", "lightly_train_steps"}
CLAIM = {
    "claim": "views, batched",
    "ours": 13619.4,
    "reference": 561.0,
    "ratio": 24.28,
    "unit": "images/s",
    "machine": "a processor, 2 cores",
    "commit": "4b10454",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark; they import each other by name, as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_every_script_with_a_claim_is_in_the_table(script):
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - NO_CLAIM
    assert scripts == set(script("run_all").SCRIPTS)


def test_claims_are_read_from_the_last_line(script):
    read = script("run_all").read_claims
    assert read(f"some words\n{json.dumps(CLAIM)}\n") == [CLAIM]
    assert read(json.dumps([CLAIM, CLAIM])) == [CLAIM, CLAIM]
    assert read("nothing to compare\n[]") == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("13,619 images/s", "no JSON: '13,619 images/s'"),
        ("", "no JSON: ''"),
        ('{"claim": "views"}', "lacks commit, machine, ours, ratio, reference, unit"),
        ("7", "lacks claim, commit"),
    ],
)
def test_a_last_line_without_a_claim_is_an_error(script, said, reason):
    run_all = script("run_all")
    with pytest.raises(run_all.FailedScriptError, match=reason):
        run_all.read_claims(said)


def test_the_table_has_a_row_a_claim_and_the_machine_below(script):
    other = {
        **CLAIM,
        "claim": "start",
        "ours": 0.9021,
        "reference": 1,
        "ratio": 0.9021,
        "unit": "s",
    }
    assert script("run_all").write_table([CLAIM, other]).splitlines() == [
        "| Claim          |   Ours | Reference |  Ratio | Unit     |",
        "| -------------- | -----: | --------: | -----: | -------- |",
        "| views, batched | 13,619 |       561 |  24.28 | images/s |",
        "| start          | 0.9021 |         1 | 0.9021 | s        |",
        "",
        "a processor, 2 cores; commit 4b10454",
    ]


def test_a_script_that_fails_is_named_and_the_others_go_on(script, monkeypatch, tmp_path, capsys):
    run_all = script("run_all")
    (tmp_path / "good.py").write_text(f"print('fine')\nprint({json.dumps(CLAIM)!r})\n")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "mute.py").write_text("print('words')\n")
    (tmp_path / "idle.py").write_text("print('nothing here')\nprint('[]')\n")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "SCRIPTS", ("bad", "mute", "idle", "good"))
    out = tmp_path / "out" / "claims.json"
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "failed: benchmarks/bad.py: exit code 3" in said.err
    assert "failed: benchmarks/mute.py: its last line is no JSON: 'words'" in said.err
    assert "| views, batched | 13,619 |" in said.out
    assert "nothing to compare here" in said.out
    written = json.loads(out.read_text())
    assert [claim["script"] for claim in written["claims"]] == ["good"]
    assert set(written["failures"]) == {"bad", "mute"}


def test_ways_take_turns_and_the_first_round_does_not_count(script):
    calls = []

    def way(name):
        calls.append(name)
        return len(calls)

    found = script("claims").alternate({name: lambda name=name: way(name) for name in "ab"}, 2)
    assert "".join(calls) == "abbaab"
    assert found == {"a": [4, 5], "b": [3, 6]}


def test_a_claim_is_the_quotient_of_its_figures(script):
    claim = script("claims").state("a claim", 12345.67, 5000, "images/s")
    assert set(claim) == set(CLAIM)
    assert (claim["ours"], claim["reference"], claim["ratio"]) == (12345.7, 5000, 2.469)


def test_growth_is_that_of_the_larger_half(script):
    slope_of = script("scaling").slope_of
    assert slope_of([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert slope_of([1, 2, 4, 8, 16], [9, 9, 4, 8, 16]) == pytest.approx(1)


def test_a_point_of_each_series_is_measured(script):
    scaling = script("scaling")
    assert scaling.list_classes(7)["seconds"] > 0
    assert scaling.peak_memory() > 1 << 20


def test_growth_is_drawn(script, tmp_path):
    scaling = script("scaling")
    found = {
        name: [{"value": value, "seconds": value, "bytes": value << 20} for value in series.values]
        for name, series in scaling.SERIES.items()
    }
    scaling.draw(found, tmp_path / "plots" / "scaling.png")
    assert (tmp_path / "plots" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_operators_are_booked_by_what_they_are_for(script):
    kind_of = script("utilisation").kind_of
    assert kind_of("aten::addmm") == "matrix products of linear layers"
    assert kind_of("aten::bmm") == "matrix products of attention"
    assert kind_of("aten::_softmax_backward_data") == "softmax"
    assert kind_of("aten::native_layer_norm_backward") == "norms"
    assert kind_of("aten::add_") == "adding and scaling"
    assert kind_of("aten::gather") == "everything else"


@pytest.fixture
def stage_2(script) -> Any:
    """Build both ways of stage 2 on eight images."""
    finetune = script("finetune")
    runtime = finetune.open_runtime(finetune.RuntimeConfig(device="cpu", precision="fp32"))
    pixels = finetune.make_images(8)
    dataset = finetune.with_classes(finetune.packed(pixels, runtime.device), finetune.NUM_CLASSES)
    maps = finetune.make_maps(8, finetune.NUM_CLASSES, finetune.GRID)
    ours = finetune.Way(dataset, finetune.MODEL, 2, finetune.GRID, runtime, finetune.AUGMENT)
    reference = finetune.Reference(pixels, maps, ours, batch_size=2, steps=1, precision="fp32")
    return finetune, ours, reference, maps


def test_both_ways_of_stage_2_compute_the_same_loss(stage_2):
    finetune, ours, reference, _ = stage_2
    finetune.check_same_work(ours, reference)
    with torch.no_grad():
        reference.network.token_head.bias[0] += 1
    with pytest.raises(AssertionError):
        finetune.check_same_work(ours, reference)


def test_the_published_way_crops_maps_as_images(stage_2):
    finetune, _, reference, maps = stage_2
    data = reference.loader.dataset
    samples = [data[i] for i in range(4)]
    listed = torch.stack(
        [torch.stack([maps.prob[i].float(), maps.index[i].float()]) for i in (0, 1)]
    )
    rest = maps.rest[:2].float() / (finetune.NUM_CLASSES - listed.shape[2])
    whole = finetune.crop_maps(listed, rest, torch.tensor([[0.0, 0, 1, 1]]).repeat(2, 1))
    torch.testing.assert_close(whole, maps.dense(torch.arange(2)), rtol=2e-3, atol=1e-5)
    # One cell to the right and one up: a cell outside is the nearest inside.
    box = torch.tensor([[1, -1, 9, 7]]) / finetune.GRID
    moved = finetune.crop_maps(listed[:1], rest[:1], box)
    torch.testing.assert_close(moved[0, :, 1:, :-1], whole[0, :, :-1, 1:])
    torch.testing.assert_close(moved[0, :, 0, :-1], whole[0, :, 0, 1:])
    for image, _, _, where, _ in samples:
        assert image.shape == (3, 32, 32)
        assert where[2:].sub(where[:2]).tolist() == [1.0, 1.0]


def test_one_file_holds_what_the_usual_way_writes(script, tmp_path):
    labeling = script("labeling")
    pixels = labeling.make_images(6)
    runtime = labeling.open_runtime(labeling.RuntimeConfig(device="cpu", precision="fp32"))
    dataset = labeling.with_classes(labeling.packed(pixels, runtime.device), labeling.NUM_CLASSES)
    teacher = labeling.create_teacher()
    maps = labeling.label_ours(teacher, dataset, runtime, tmp_path)
    loader = DataLoader(labeling.Numbered(pixels, labeling.AS_IT_IS), 4)
    labeling.label_reference(labeling.DenseHead(teacher).eval(), loader, tmp_path)
    labeling.check_same_maps(maps, tmp_path, range(6))
    maps.prob[3] = maps.prob[2] / 2
    with pytest.raises(AssertionError):
        labeling.check_same_maps(maps, tmp_path, range(6))


def test_the_vote_of_the_reference_is_ours(script):
    evaluation = script("evaluation")
    generator = torch.Generator().manual_seed(0)
    bank, test = (torch.randn(size, 8, generator=generator) for size in (200, 50))
    bank_labels, labels = (torch.arange(size) % evaluation.NUM_CLASSES for size in (200, 50))
    mine = evaluation.knn_top1(bank, bank_labels, test, labels, num_classes=10)
    theirs = evaluation.neighbours_vote(
        F.normalize(bank, dim=1), bank_labels, F.normalize(test, dim=1), labels
    )
    assert mine == theirs
    assert 0 < mine < 1


def test_what_another_interpreter_lacks_is_said(script, tmp_path):
    missing = script("other_trainers").missing_packages
    nowhere = str(tmp_path / "python")
    assert missing(nowhere) == [f"a Python at {nowhere}"]
    assert "timm" not in missing(sys.executable)


def test_lightly_train_is_given_the_same_work(script, tmp_path):
    settings = script("other_trainers").lightly_train_settings(tmp_path, tmp_path / "run", "bf16")
    assert settings["model"] == "timm/vit_tiny_patch16_224"
    assert settings["model_args"]["embed_dim"] == 192
    assert settings["transform_args"]["local_view"] == {"num_views": 8, "view_size": [16, 16]}
    assert settings["method_args"]["output_dim"] == 1024
    assert settings["precision"] == "bf16-mixed"
    json.dumps(settings)
