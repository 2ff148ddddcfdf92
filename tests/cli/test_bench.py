import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallvit.cli.app import main

SUITE = {
    "description": "Do three seeds fit into a test?",
    "datasets": ["digits"],
    "token_label": [False],
    "fractions": [0.2],
    "seeds": [0, 1],
    "settings": {
        "model": {"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "finetune": {"schedule": {"epochs": 1.0, "warmup_epochs": 0.0, "eval_epochs": 1.0}},
    },
    "bench": {"attacks": ["fgsm"], "eps": [2.0], "subset": 10, "cost": False},
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


@pytest.fixture
def run(copy_run, tmp_path: Path) -> str:
    return str(copy_run(tmp_path / "runs" / "one", "finetune", "--init", "scratch"))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_suite_makes_its_runs_and_their_leaderboard_and_again_only_what_is_missing(
    suite, tmp_path, capsys
):
    words = ["bench", str(suite), "--out", str(tmp_path / "made")]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "made").exists()
    assert main(words) == 0
    board = json.loads((tmp_path / "made" / "leaderboard" / "leaderboard.json").read_text())
    (row,) = board["rows"]
    assert row["seeds"] == [0, 1]
    assert row["figures"]["attack/fgsm/2"]["n"] == 2
    runs = list((tmp_path / "made" / "finetune").iterdir())
    before = {path: (path / "result.json").stat().st_mtime_ns for path in runs}
    assert main([*words, "--eps", "4"]) == 0  # a setting of the command line counts
    assert {path: (path / "result.json").stat().st_mtime_ns for path in runs} == before
    board = json.loads((tmp_path / "made" / "leaderboard" / "leaderboard.json").read_text())
    assert "attack/fgsm/4" in board["rows"][0]["figures"]


def test_robust_measures_what_needs_nothing_more(run, tmp_path, capsys):
    words = ["bench", run, "--robust", "--subset", "6", "--pgd-steps", "1", "--no-cost"]
    assert main([*words, "--out", str(tmp_path / "board")]) == 0
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    figures = board["rows"][0]["figures"]
    assert {
        "corruption/generated",
        "attack/pgd/8",
        "attack/fgsm/1",
        "ood/auroc/msp/uniform-noise",
        "features/knn",
        "calibration/ece_scaled",
    } <= figures.keys()
    assert "6 test images" in board["protocol"]["Corruptions, generated"]
    assert "not adversarially trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nope"], 3, "no run and no suite 'nope'; known: cifar10-few-labels, digits, small-data"),
        (["digit", "--dry-run"], 3, "no suite 'digit'; did you mean 'digits'?"),
        (["digits", "."], 2, "digits is a suite, which is given alone"),
        (["digits", "--jobs", "0"], 2, "--jobs must be at least 1, got 0"),
        (["digits", "--node-cpus", "-1"], 2, "--node-cpus must be above 0, got -1"),
        (["--jobs", "2"], 2, "--jobs is for suites"),
        ([], 3, "no finished fine-tuned run under"),
        (["--corruption", "generated"], 2, "did you mean --corruptions?"),
        (["digits", "--corruptions", "official"], 2, "name its folder with --archive"),
        (
            ["digits", "--corruptions", "official", "--archive", "none"],
            3,
            "none is not there: name the folder of its images",
        ),
    ],
)
def test_a_mistake_ends_with_one_line(words, code, said, capsys):
    assert main(["bench", *words]) == code
    assert said in last_line(capsys)


def test_a_folder_of_runs_is_no_run_and_the_remedy_takes_them(run, monkeypatch, capsys):
    Path("gone").symlink_to("nowhere")
    assert main(["bench", "gone"]) == 3
    assert "gone is a link to nowhere, which is not there" in last_line(capsys)
    assert main(["bench", "runs"]) == 3
    assert "runs is no run but holds 1: name them, or take all" in last_line(capsys)
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", "runs")
    assert main(["bench", "--no-cost"]) == 0


def test_a_teacher_has_no_place_in_a_leaderboard_and_the_remedy_scores_it(tiny, capsys):
    assert main(["teacher", "--recipe", tiny, "--out", "cnn", "--epochs", "1"]) == 0
    assert main(["bench", "cnn"]) == 2
    said = "'smallvit eval cnn --split test' scores it"
    assert said in last_line(capsys)
    assert main(said.split("'")[1].split()[1:]) == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--eps", "8"], 2, "eps 8 is of --attacks"),
        (["--eps", "0", "--attacks", "fgsm"], 2, "eps"),
        (["--subset", "5"], 2, "subset 5 is of --corruptions or --attacks"),
        (["--ood", "digits"], 2, "the classifier was trained on digits"),
        (["--ood", "nowhere"], 2, "unknown set of foreign images 'nowhere'"),
        (["--out", "runs/one/result.json"], 3, "choose another --out"),
    ],
)
def test_a_mistake_about_a_run_ends_with_one_line_before_it_is_scored(
    words, code, said, run, capsys
):
    capsys.readouterr()
    assert main(["bench", run, *words]) == code
    assert said in last_line(capsys)
    assert not (Path(run) / "bench").exists()


def test_a_suite_that_says_a_key_twice_is_refused(suite, capsys):
    suite.write_text(suite.read_text() + "datasets: [cifar10]\n")
    assert main(["bench", str(suite), "--dry-run"]) == 2
    assert "the key 'datasets' stands twice" in last_line(capsys)


def test_the_help_does_not_wait_for_torch():
    code = (
        "import sys; from smallvit.cli.app import main; main(['bench', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"--corruptions" in done.stdout
