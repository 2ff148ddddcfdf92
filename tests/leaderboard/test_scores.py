import inspect
import json
import re
import shutil
import textwrap
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smallvit as sv
from smallvit.core.alone import alone
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import Run
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.evaluate.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from smallvit.leaderboard import attention, parts, scores
from smallvit.leaderboard.api import bench
from smallvit.leaderboard.figures import kind_of
from smallvit.leaderboard.part import subset_of
from smallvit.leaderboard.parts import accuracy, attacks, corruptions, cost, probes
from smallvit.leaderboard.protocol import BenchConfig
from smallvit.leaderboard.scores import score_runs
from smallvit.models.measure import measure
from smallvit.runs.score import evaluate_run, open_scored

ALL = BenchConfig(
    probes=True,
    corruptions="generated",
    attacks=("fgsm", "pgd"),
    eps=(1.0, 8.0),
    pgd_steps=2,
    ood=("noise",),
    subset=12,
)
MODEL = {"name": "vit_tiny", "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2}


LEARN = {
    "optim": {"lr": 4.0e-3, "batch_size": 64},
    "schedule": {"epochs": 10.0, "warmup_epochs": 1.0, "eval_epochs": 5.0},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLVIT_CACHE_DIR", str(folder / "cache"))
        patch.setenv("SMALLVIT_RUNS_DIR", str(folder / "runs"))
        patch.setenv("SMALLVIT_OFFLINE", "1")
        patch.setattr(cost, "MOST_APART", 100.0)  # whatever else the machine does
        patch.setattr(cost, "ROUND_S", 0.0)
        yield folder


@pytest.fixture(scope="module")
def runs(home) -> list[Run]:
    return [
        sv.finetune(
            dataset="digits",
            model=MODEL,
            seed=seed,
            **LEARN,
            out=home / f"run-{seed}",
        )
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def scored(runs) -> list[scores.Scores]:
    found, notes, error = score_runs(runs, ALL)
    assert (notes, error) == ([], None)
    return found


def test_accuracy_is_what_eval_says_and_what_the_answers_say(runs, scored):
    for run, found in zip(runs, scored, strict=True):
        said = evaluate_run(run.path, split="test").metrics
        assert found.summary["top1"] == said["top1"]
        assert found.figures["accuracy/nll"] == said["nll"]
        assert len(found.correct) == said["n"]
        assert found.correct.mean() == pytest.approx(said["top1"])
        assert np.trace(found.evidence.confusion) == found.correct.sum()
        assert sum(each.count for each in found.evidence.reliability) == said["n"]


def test_probes_are_what_eval_says(runs, scored):
    said = evaluate_run(runs[0].path, split="test", linear=True).metrics
    assert scored[0].figures["features/linear"] == pytest.approx(said["linear"])
    assert 0.1 < scored[0].figures["features/knn"] <= 1


def test_the_corruption_score_is_the_mean_of_75_cells_and_the_extra_are_apart(scored):
    figures = scored[0].figures
    for names, path in (
        (CORRUPTIONS, "corruption/generated"),
        (EXTRA_CORRUPTIONS, "corruption/generated_extra"),
    ):
        cells = [figures[f"corruption/generated/{n}/{s}"] for n in names for s in range(1, 6)]
        assert figures[path] == pytest.approx(sum(cells) / len(cells))
    assert len(CORRUPTIONS) * 5 == 75


def test_networks_scored_together_get_the_figures_of_each_scored_alone(runs, scored, home):
    (alone,), *_ = score_runs([copy_of(runs[1], home / "alone")], ALL)
    for name, value in scored[1].figures.items():
        if not name.startswith("cost/"):
            assert alone.figures[name] == pytest.approx(value, abs=1e-6), name


def test_every_figure_is_known_and_every_group_says_how_it_was_measured(scored):
    for name in scored[0].figures:
        assert kind_of(name)
    assert {"Calibration", "Backbone", "Cost", "Attacks, pgd", "Corruptions, generated"} <= set(
        scored[0].protocol
    )
    assert "no row was trained against attacks" in scored[0].protocol["Attacks, pgd"]
    assert "12 test images" in scored[0].protocol["Attacks, pgd"]


def test_a_second_call_measures_nothing(runs, scored, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("measured again")

    for module, name in (
        (attacks, "robust_correct"),
        (corruptions, "corrupt"),
        (probes, "linear_top1"),
        (cost, "time_passes"),
        (accuracy, "fit_temperature"),
    ):
        monkeypatch.setattr(module, name, fail)
    again, *_ = score_runs(runs, ALL)
    assert [each.figures for each in again] == [each.figures for each in scored]
    assert again[0].evidence == scored[0].evidence
    assert np.array_equal(again[0].correct, scored[0].correct)


def test_other_settings_are_measured_anew(runs, scored, monkeypatch):
    calls = []
    real = attacks.robust_correct
    monkeypatch.setattr(
        attacks, "robust_correct", lambda *a, **k: calls.append(k["attack"]) or real(*a, **k)
    )
    score_runs(
        runs[:1], BenchConfig(attacks=("fgsm", "pgd"), eps=(1.0, 8.0), subset=12, cost=False)
    )
    assert calls == ["pgd"]  # other steps; FGSM has none


def test_an_interrupted_corruption_goes_on_where_it_was(runs, home, monkeypatch):
    run = copy_of(runs[0], home / "interrupted")
    config = BenchConfig(corruptions="generated", subset=4, cost=False)
    real, seen = corruptions.corrupt, []

    def stop_at_fog(images, name, *args, **kwargs):
        seen.append(name)
        if name == "fog":
            raise KeyboardInterrupt
        return real(images, name, *args, **kwargs)

    monkeypatch.setattr(corruptions, "corrupt", stop_at_fog)
    with pytest.raises(KeyboardInterrupt):
        score_runs([run], config)
    done = set(seen) - {"fog"}
    assert done
    monkeypatch.setattr(
        corruptions, "corrupt", lambda i, name, *a, **k: seen.append(name) or real(i, name, *a, **k)
    )
    seen.clear()
    (found,), *_ = score_runs([run], config)
    assert not done & set(seen)
    assert "corruption/generated" in found.figures


def cut(text: str) -> str:
    return text[:50]


def without_evidence(text: str) -> str:
    return json.dumps({k: v for k, v in json.loads(text).items() if k != "evidence"})


def with_a_nan(text: str) -> str:
    kept = json.loads(text)
    kept["figures"]["calibration/ece"] = float("nan")
    return json.dumps(kept)


def with_other_answers(text: str) -> str:
    return json.dumps(json.loads(text) | {"correct": "AAAA"})


@pytest.mark.parametrize("spoil", [cut, without_evidence, with_a_nan, with_other_answers])
def test_a_broken_file_is_measured_anew_and_said(spoil, runs, scored, home, caplog):
    run = copy_of(runs[0], home / spoil.__name__)
    (path,) = (run.path / "bench").glob("accuracy-*.json")
    path.write_text(spoil(path.read_text()))
    with caplog.at_level("WARNING", logger="smallvit"):
        (found,), *_ = score_runs([run], BenchConfig(cost=False))
    assert f"{path} is broken" in caplog.text
    assert found.summary == scored[0].summary
    assert json.loads(path.read_text())["summary"] == scored[0].summary


def test_a_run_that_cannot_be_scored_is_named_and_the_others_are_scored(runs, home):
    run = copy_of(runs[0], home / "no-weights")
    (run.path / "export" / "model.safetensors").unlink()
    found, (note,), _ = score_runs([run, runs[1]], BenchConfig(cost=False))
    assert [each.run.path for each in found] == [runs[1].path]
    assert "no-weights" in note


def test_foreign_images_that_suit_no_run_are_refused_before_any_is_scored(runs, monkeypatch):
    monkeypatch.setattr(accuracy, "classification_metrics", None)
    with pytest.raises(ConfigError, match="--ood digits: the classifier was trained on digits"):
        score_runs(runs[:1], BenchConfig(ood=("digits",), cost=False))


def test_an_archive_that_suits_no_run_is_refused_before_any_is_scored(runs, home, monkeypatch):
    monkeypatch.setattr(accuracy, "classification_metrics", None)
    with pytest.raises(DataError, match="not-there"):
        score_runs(runs, BenchConfig(corruptions="official", archive=home / "not-there"))


def test_a_part_that_no_run_has_is_an_error_after_the_rest_is_kept(runs, monkeypatch):
    def fail(*_, **__):
        raise DataError("no fog today")

    monkeypatch.setattr(corruptions, "corrupt", fail)
    found, notes, error = score_runs(
        runs, BenchConfig(corruptions="generated", subset=3, cost=False)
    )
    assert len(found) == 2
    assert isinstance(error, DataError)
    assert "no fog today" in notes[0]


def test_the_subset_is_the_same_for_every_run_and_depends_on_the_seed(runs):
    _, dataset = open_scored(runs[0], open_runtime(RuntimeConfig()), ["test"])
    split = dataset.splits["test"]
    first, again, other = (
        subset_of(split, BenchConfig(subset=20, seed=seed)).index for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.tolist()) <= set(split.index.tolist())
    assert all(len(subset_of(split, BenchConfig(subset=n))) == len(split) for n in (None, 10_000))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"corruptions": "official"}, "corruptions official reads the published archive"),
        ({"archive": Path("x")}, "archive x is read with corruptions official or both, not none"),
        ({"attacks": ("pgd",), "eps": ()}, "attacks need an eps"),
        ({"pgd_steps": 5, "attacks": ("fgsm",)}, r"pgd_steps 5 is of --attacks pgd"),
        ({"eps": (4.0,)}, r"eps 4 is of --attacks"),
        ({"subset": 10}, "subset 10 is of --corruptions or --attacks"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        BenchConfig(**settings).check()


def test_a_value_out_of_range_is_refused_by_name(runs):
    with pytest.raises(ConfigError, match="eps"):
        sv.bench(runs, eps=(0.0,))
    with pytest.raises(ConfigError, match="subset"):
        sv.bench(runs, subset=0)
    with pytest.raises(ConfigError, match="corruption"):
        sv.bench(runs, corruption="generated")


def test_the_accuracy_without_a_change_is_that_of_the_same_images(scored):
    found = scored[0]
    clean = found.figures["corruption/generated_clean"]
    assert clean * 12 == pytest.approx(round(clean * 12))
    assert found.figures["attack/pgd/0"] == found.figures["attack/fgsm/0"] == clean


def test_official_corruptions_are_read_once_and_anew_when_the_archive_changes(
    runs, scored, home, monkeypatch
):
    """An archive whose images are the test images: every cell has the clean accuracy."""
    _, dataset = open_scored(runs[0], open_runtime(RuntimeConfig()), ["test"])
    split = dataset.splits["test"]
    images = split.take(torch.arange(len(split))).permute(0, 2, 3, 1).numpy()
    archive = home / "digits-c"
    archive.mkdir()
    np.save(archive / "labels.npy", np.tile(split.labels[split.index].numpy(), 5))
    for name in CORRUPTIONS:
        np.save(archive / f"{name}.npy", np.tile(images, (5, 1, 1, 1)))
    config = BenchConfig(corruptions="official", archive=archive, cost=False)
    calls = []
    (found,), notes, _ = score_runs(runs[:1], config)
    assert notes == []
    assert found.figures["corruption/official"] == pytest.approx(found.summary["top1"])
    assert "corruption/generated" not in found.figures
    classify = corruptions.predict_pixels
    monkeypatch.setattr(
        corruptions, "predict_pixels", lambda *a, **k: calls.append(1) or classify(*a, **k)
    )
    assert score_runs(runs[:1], config)[0][0].figures == found.figures
    assert calls == []
    np.save(archive / "fog.npy", np.zeros_like(np.tile(images, (5, 1, 1, 1))))
    (other,), *_ = score_runs(runs[:1], config)
    assert calls
    assert other.figures["corruption/official"] != found.figures["corruption/official"]


def test_foreign_images_of_one_name_are_told_apart_by_their_pixels(runs, home):
    run = copy_of(runs[0], home / "foreign")
    for place, value in (("first", 0), ("second", 255), ("first", 0)):
        folder = home / place / "foreign"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(3):
            pixels = np.full((8, 8, 3), abs(value - number), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        score_runs([run], BenchConfig(ood=(str(folder),), cost=False))
    assert len(list((run.path / "bench").glob("ood-foreign-*.json"))) == 2


def test_runs_of_other_stages_are_refused_and_left_alone(home):
    start = sv.pretrain(
        dataset="digits",
        model=MODEL,
        method={"num_prototypes": 8, "hidden_dim": 8, "bottleneck_dim": 4},
        epochs=0.05,
        out=home / "start",
    )
    with pytest.raises(ConfigError, match="pretrain run: a leaderboard is of fine-tuned ones"):
        sv.bench([start])
    assert not (start.path / "bench").exists()


def test_runs_of_other_settings_share_no_row_and_are_named_by_them(runs, home):
    other = sv.finetune(
        dataset="digits",
        model=MODEL,
        seed=1,
        **LEARN | {"optim": LEARN["optim"] | {"weight_decay": 0.5}},
        out=home / "decayed",
    )
    result = sv.bench([*runs, other, runs[0]], out=home / "settings", cost=False)
    assert [(row.arm, row.seeds) for row in result.leaderboard.rows] == [
        ("scratch (weight decay 0.05)", (0, 1)),
        ("scratch (weight decay 0.5)", (1,)),
    ]


def test_a_folder_that_cannot_be_written_is_refused_before_any_run_is_scored(runs, monkeypatch):
    monkeypatch.setattr(accuracy, "classification_metrics", None)
    with pytest.raises(DataError, match=r"cannot write to .*result.json.* choose another out="):
        sv.bench(runs, out=runs[0].path / "result.json")


def test_no_runs_are_refused():
    with pytest.raises(ConfigError, match="bench needs runs"):
        sv.bench([])


def test_one_run_is_taken_as_it_is_or_by_its_path(runs, home):
    for given in (runs[0], runs[0].path, str(runs[0].path), iter(runs[:1])):
        result = sv.bench(given, out=home / "one", cost=False)
        assert [row.seeds for row in result.leaderboard.rows] == [(0,)]


def test_what_is_no_run_is_refused_in_one_line(runs, home):
    unchecked = inspect.unwrap(bench)  # tests check types before; users do not
    with pytest.raises(ConfigError, match=r"bench takes runs or their folders, not int \(3\)"):
        unchecked(3)
    with pytest.raises(ConfigError, match=r"not dict \(\{'run': 1\}\): give what sv.finetune"):
        unchecked([runs[0], {"run": 1}])
    with pytest.raises(ConfigError, match="nowhere is not there"):
        sv.bench("nowhere")
    with pytest.raises(DataError, match="no finished fine-tuned run under"):
        sv.bench()


def test_a_leaderboard_is_shown_as_its_table_without_the_bytes_of_its_pictures(runs, home):
    result = sv.bench(runs, out=home / "shown", cost=False)
    said = repr(result)
    (row,) = result.leaderboard.rows
    assert said.splitlines()[0] == "Leaderboard: top-1"
    assert f"scratch, vit_tiny, 10 % of the labels: {100 * row.top1_mean:.2f} +- " in said
    assert len(said) < 400
    assert "PNG" not in repr(result.leaderboard)
    table = result._repr_html_()
    assert "<td>scratch</td>" in table
    assert f"<td>{100 * row.commonest_share:.2f}</td>" in table
    assert f"naming '{row.commonest}' always" in unescape(table)


def test_the_time_of_a_network_is_measured_once_for_all_its_runs(runs, home, monkeypatch):
    copies = [copy_of(run, home / f"timed-{run.path.name}") for run in runs]
    for run in copies:
        shutil.rmtree(run.path / "bench", ignore_errors=True)
    calls, real = [], cost.time_passes
    monkeypatch.setattr(cost, "time_passes", lambda *a: calls.append(1) or real(*a))
    found, *_ = score_runs(copies[:1], BenchConfig())
    both, *_ = score_runs(copies, BenchConfig())
    score_runs(copies[1:], BenchConfig())
    assert len(calls) == 1
    costs = [{k: v for k, v in s.figures.items() if k.startswith("cost/")} for s in both]
    assert costs[0] == costs[1]
    assert costs[0]["cost/images_per_s"] == found[0].figures["cost/images_per_s"]
    (kept,) = (copies[1].path / "bench").glob("cost-*.json")
    assert json.loads(kept.read_text())["key"]["version"] == cost.VERSION


def test_a_cost_says_what_it_was_measured_with(runs):
    runtime = open_runtime(RuntimeConfig())
    (found,), *_ = score_runs(runs[:1], BenchConfig(), runtime_config=RuntimeConfig())
    backbone, dataset = open_scored(runs[0], runtime, ("test",))
    assert found.figures["cost/macs"] == measure(backbone, dataset.image_size).macs
    what = f"{runtime.device.type}, {runtime.precision}, {torch.get_num_threads()} threads"
    assert what in found.protocol["Cost"]


def test_a_time_that_a_busy_machine_spoiled_is_a_dash_with_its_reason_and_is_not_kept(
    runs, home, monkeypatch
):
    run = copy_of(runs[0], home / "busy")
    shutil.rmtree(run.path / "bench", ignore_errors=True)
    monkeypatch.setattr(cost, "MOST_APART", -1.0)
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)
    result = sv.bench(run, out=home / "busy-board")
    (row,) = result.leaderboard.rows
    assert "cost/images_per_s" not in row.figures
    assert row.missing["cost/images_per_s"].startswith("rounds differ by ")
    assert "| - rounds differ by " in result.files["md"].read_text()
    assert "rounds differ by " in result.files["html"].read_text()
    assert not list((run.path / "bench").glob("cost-*.json"))


def test_a_time_that_is_not_kept_is_measured_once_for_all_runs_too(runs, home, monkeypatch):
    copies = [copy_of(run, home / f"restless-{run.path.name}") for run in runs]
    for run in copies:
        shutil.rmtree(run.path / "bench", ignore_errors=True)
    monkeypatch.setattr(cost, "MOST_APART", -1.0)
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)
    calls, real = [], cost.time_passes
    monkeypatch.setattr(cost, "time_passes", lambda *a: calls.append(1) or real(*a))
    found, *_ = score_runs(copies, BenchConfig())
    assert len(calls) == 1
    assert all("cost/images_per_s" in each.missing for each in found)


@pytest.mark.parametrize("name", ["device_name", "torch"])
def test_a_time_of_another_gpu_or_torch_is_not_taken_for_this_ones(runs, home, monkeypatch, name):
    run = copy_of(runs[0], home / f"timed-on-{name}")
    shutil.rmtree(run.path / "bench", ignore_errors=True)
    score_runs([run], BenchConfig())
    if name == "torch":
        monkeypatch.setattr(torch, "__version__", f"{torch.__version__}.other")
    else:
        monkeypatch.setattr(cost, "device_name", lambda runtime: "another GPU")
    score_runs([run], BenchConfig())
    kept = (run.path / "bench").glob("cost-*.json")
    assert len({json.loads(file.read_text())["key"][name] for file in kept}) == 2


def test_bench_waits_for_the_thread_that_computes_before_it_touches_the_log():
    inside, end = threading.Event(), threading.Event()

    @alone()
    def compute() -> None:
        inside.set()
        end.wait(10)

    def score() -> None:
        with pytest.raises(ConfigError):
            sv.bench([])

    threads = [threading.Thread(target=compute), threading.Thread(target=score)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    waiting = threads[1].is_alive()
    end.set()
    for thread in threads:
        thread.join()
    assert waiting


def test_every_variant_of_an_arm_has_an_attention_picture(runs, home):
    other = sv.finetune(
        dataset="digits",
        model=MODEL,
        seed=1,
        **LEARN | {"schedule": {"epochs": 0.1}},
        out=home / "short",
    )
    board = sv.bench([*runs, other], out=home / "variants", cost=False).leaderboard
    assert [row.num_seeds for row in board.rows] == [1, 2]
    assert all(each.attention is not None for each in board.evidence.values())
    drawn = [len(list((run.path / "bench").glob("attention-*.png"))) for run in (*runs, other)]
    assert drawn == [1, 0, 1]


def test_a_picture_of_another_version_is_drawn_anew(runs, home, monkeypatch):
    run = copy_of(runs[0], home / "drawn")
    sv.bench(run, out=home / "drawn-board", cost=False)
    sv.bench(run, out=home / "drawn-board", cost=False)
    assert len(list((run.path / "bench").glob("attention-*.png"))) == 1
    monkeypatch.setattr(attention, "PICTURE_VERSION", attention.PICTURE_VERSION + 1)
    sv.bench(run, out=home / "drawn-board", cost=False)
    assert len(list((run.path / "bench").glob("attention-*.png"))) == 2


def test_bench_returns_a_leaderboard_that_writes_its_page_anywhere(runs, home):
    result = sv.bench(runs, out=home / "board", cost=False)
    page = result.to_html(home / "pages" / "report.html")
    assert page.read_text() == result.files["html"].read_text()
    (row,) = result.leaderboard.rows
    assert row.num_seeds == 2
    with pytest.raises(DataError, match="cannot write"):
        result.to_html(home / "board" / "leaderboard.json" / "x.html")


def test_pictures_that_were_renamed_are_corrupted_as_before(home, monkeypatch):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    for name in ("before", "after"):
        for i in range(60):
            path = home / name / "ab"[i % 2] / f"{i if name == 'before' else 60 - i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(path)
    model = MODEL | {"patch_size": 4}
    run = sv.finetune(data=home / "before", model=model, **LEARN, out=home / "renamed")
    seen: list[bytes] = []

    def watched(*args, **settings):
        corrupted = corrupt(*args, **settings)
        seen.append(corrupted.numpy().tobytes())
        return corrupted

    monkeypatch.setattr(corruptions, "corrupt", watched)
    monkeypatch.setattr(corruptions, "ALL_CORRUPTIONS", ("gaussian_noise", "glass_blur"))
    config = BenchConfig(corruptions="generated", cost=False)
    for name in ("before", "after"):
        shutil.rmtree(run.path / "bench", ignore_errors=True)
        assert score_runs([run], config, place=home / name)[1:] == ([], None)
    assert len(seen) == 2 * 2 * 5
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_the_figure_that_the_docs_add_reaches_every_file(runs, home, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text.partition("Cohen's kappa")[2], re.DOTALL)
    example: dict = {}
    exec(textwrap.dedent(code), example)
    monkeypatch.setattr(parts, "PARTS", (*parts.PARTS, example["KAPPA"]))
    result = sv.bench(runs[0], out=home / "kappa", cost=False)
    (row,), (evidence,) = result.leaderboard.rows, result.leaderboard.evidence.values()
    counts = np.array(evidence.confusion)
    chance = counts.sum(axis=0) @ counts.sum(axis=1) / counts.sum() ** 2
    kappa = (row.top1_mean - chance) / (1 - chance)
    assert row.figures["accuracy/kappa"].mean == pytest.approx(kappa, abs=1e-9)
    for kind, name in {"json": "accuracy/kappa", "csv": "accuracy/kappa_mean"}.items():
        assert name in result.files[kind].read_text()
    for kind in ("md", "html"):
        assert "kappa" in result.files[kind].read_text()


def copy_of(run: Run, target: Path) -> Run:
    shutil.copytree(run.path, target)
    return Run(target)
