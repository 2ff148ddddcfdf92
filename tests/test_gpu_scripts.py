import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
KINDS = ("pretrain", "finetune")
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all scripts find at the tiny size."""
    out = tmp_path_factory.mktemp("gpu") / "report.json"
    command = [sys.executable, str(GPU / "run_all.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of what is measured of steps."""
    monkeypatch.syspath_prepend(str(GPU))
    return importlib.import_module("measure")


def test_every_part_ends_without_an_error(report):
    assert [name for name, part in report["parts"].items() if "error" in part] == []
    assert list(report["parts"]) == [
        "environment",
        "peak_flops_per_s",
        "flops_an_image",
        "clock",
        "host_waits",
        "busy",
        "views_images_per_s",
        "determinism",
        "resume",
        "processes",
        "steps",
    ]


def test_what_a_cpu_cannot_tell_is_null(report):
    parts = report["parts"]
    assert report["tiny"]
    assert report["device"] == "cpu"
    assert all(part["by_torch"] is None for part in parts["host_waits"]["found"].values())
    assert all(part["busy"] is None for part in parts["busy"]["found"].values())


def test_steps_are_timed_and_set_against_the_peak(report):
    rows = report["parts"]["steps"]["found"]
    peaks = report["parts"]["peak_flops_per_s"]["found"]
    flops = report["parts"]["flops_an_image"]["found"]
    assert {(row["stage"], row["precision"]) for row in rows} == {
        (kind, precision) for kind in KINDS for precision in ("bf16", "fp32")
    }
    for row in rows:
        speed = row["images_per_s"] * flops[row["stage"]]
        assert row["flops_per_s"] == pytest.approx(speed)
        assert row["of_peak"] == pytest.approx(speed / peaks[row["precision"]])
        assert row["images_per_s"] * row["ms_a_step"] == pytest.approx(1e3 * row["batch_size"])


def test_the_clock_is_that_of_the_whole_recipe(report):
    clock = report["parts"]["clock"]["found"]
    assert clock["extrapolated"]
    # 2,000 images in batches of 8.
    assert [clock[kind]["steps"] for kind in KINDS] == [200 * 250, 300 * 250]
    assert clock["minutes"] == pytest.approx(sum(clock[kind]["minutes"] for kind in KINDS))


def test_runs_repeat_and_resume_bit_for_bit(report):
    for part in ("determinism", "resume"):
        found = report["parts"][part]["found"]
        assert {kind: found[kind]["equal"] for kind in KINDS} == dict.fromkeys(KINDS, True)
    resumed = report["parts"]["resume"]["found"]
    assert [resumed[kind]["resumed_at_step"] for kind in KINDS] == [2, 2]


def test_spans_that_overlap_count_once(measure):
    spans = [(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0)]
    assert measure.union_length(spans) == 4.0
    assert measure.union_length([]) == 0.0


@pytest.fixture
def stage(measure, request: pytest.FixtureRequest) -> Any:
    """One stage at the tiny size on a CUDA device."""
    from smallvit.engine.config import RuntimeConfig

    stages = importlib.import_module("stages")
    recipe = stages.read_recipe(None, tiny=True)
    dataset = stages.open_data(recipe, None, torch.device("cuda"))
    runtime = RuntimeConfig(device="cuda", precision="bf16", compile="off")
    return stages.Stage(request.param, dataset, recipe, runtime)


@gpu
@needs_cuda
@pytest.mark.parametrize("stage", KINDS, indirect=True)
def test_the_host_never_waits_between_two_log_lines(stage, measure):
    waits = measure.count_waits(stage, warm=3, steps=8)
    assert waits["by_torch"] == {}
    assert waits["by_profiler"] == {}


@gpu
@needs_cuda
@pytest.mark.parametrize("stage", KINDS, indirect=True)
def test_the_data_stays_on_the_device(stage):
    split = stage.batches.split
    assert {split.images.device.type, split.labels.device.type, split.index.device.type} == {"cuda"}
    batch = stage.batches(0)
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {value.device.type for value in tensors} == {"cuda"}
