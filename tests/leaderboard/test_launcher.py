"""Runs of a suite: each once, whatever becomes of the others and of the suite itself."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from smallvit.core.config import merge, nest, to_plain
from smallvit.core.errors import ConfigError, InterruptedRunError, SmallViTError
from smallvit.leaderboard.launcher import (
    AbstractLauncher,
    LocalLauncher,
    RayLauncher,
    end_process,
    start_process,
)
from smallvit.leaderboard.node import Job, Outcome, make_run
from smallvit.leaderboard.suite import Plan, plan_suite, read_suite
from smallvit.leaderboard.suite_progress import print_plan
from smallvit.leaderboard.suite_run import run_suite

TINY = {
    "datasets": ["digits"],
    "fractions": [0.1],
    "settings": nest(
        {
            "model.embed_dim": 16,
            "model.depth": 1,
            "model.num_heads": 2,
            "runtime.device": "cpu",
            "log.checkpoint_steps": 3,
            "pretrain.schedule.epochs": 0.05,
            "teacher.schedule.epochs": 0.05,
            "finetune.schedule.epochs": 0.05,
        }
    ),
}
LONG = nest({"settings.finetune.schedule.epochs": 100.0})  # 202 steps
SUITE = """
import sys
from pathlib import Path
from smallvit.leaderboard.launcher import LocalLauncher
from smallvit.leaderboard.suite import plan_suite, read_suite
from smallvit.leaderboard.suite_run import run_suite
run_suite(plan_suite(read_suite(sys.argv[1]), Path(sys.argv[2])), LocalLauncher())
"""


class HereLauncher(AbstractLauncher):
    """Makes runs in this process, which costs no start of another one."""

    started = "running"

    def __init__(self) -> None:
        self.ended: list[tuple[str, Outcome]] = []
        self.made: list[str] = []

    @property
    def has_room(self) -> bool:
        return not self.ended

    def start(self, job: Job) -> None:
        self.made.append(job.name)
        self.ended.append((job.name, make_run(job)))

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Outcome]]:
        time.sleep(0 if self.ended else timeout_s)
        return self.stop()

    def stop(self) -> Sequence[tuple[str, Outcome]]:
        ended, self.ended = self.ended, []
        return ended


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _places(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(cache))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other threads, other roundings


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    """Write a suite to ``suite.yaml`` and plan it, in a folder of its own."""

    def make(values: dict[str, Any] | None = None, folder: str = "out") -> Plan:
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(merge(TINY, values or {})))
        return plan_suite(read_suite(str(path)), tmp_path / folder)

    return make


def job_of(plan: Plan, name: str, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "name": name,
        "stage": plan.nodes[name].stage,
        "recipe": to_plain(plan.nodes[name].recipe),
        "folder": str(plan.folder / name),
        "lock": str(plan.folder / "job.lock"),
        "log": str(plan.folder / "job.log"),
        "environ": {},
    }
    plan.folder.mkdir(exist_ok=True)
    return Job(**values | changes)


def weights(plan: Plan, name: str) -> dict[str, torch.Tensor]:
    return load_file(plan.folder / name / "export" / "model.safetensors")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start_suite(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUITE, str(tmp_path / "suite.yaml"), str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )


def status(plan: Plan, name: str) -> str:
    return json.loads((plan.folder / name / "result.json").read_text())["status"]


def test_a_cell_that_fails_is_named_and_the_others_are_made(plan, tmp_path, capsys):
    """A folder has too few images to be split, and the teacher of digits diverges."""
    for label in ("a", "b"):
        (tmp_path / "few" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "few" / label / "one.png")
    settings = {"data.image_size": 8, "teacher.optim.lr": 1e30, "teacher.schedule.epochs": 4.0}
    suite = {"datasets": ["few", "digits"], "token_label": [False, True]}
    suite |= {"recipe": "digits/vit_tiny", "settings": nest(settings)}
    of_suite = plan(suite)
    result = run_suite(of_suite, HereLauncher())
    (made,) = result.runs
    assert made.path.name == "digits-vit_tiny-scratch-f0.1-s0"
    (few, few_tl, _, digits_tl) = of_suite.cells
    assert set(result.failures) == {few, few_tl, digits_tl}
    assert result.failures[few].startswith("none of the 2 images falls into the test split")
    assert result.failures[few_tl] == "it needs teacher/few-f0.1-s0, which failed"
    assert result.failures[digits_tl] == "it needs teacher/digits-f0.1-s0, which failed"
    said = capsys.readouterr().err
    assert re.search(r"teacher/digits-f0.1-s0: failed: the loss .* became NaN or infinite", said)
    with pytest.raises(SmallViTError, match="3 of 4 cells have no result: finetune/few") as error:
        result.raise_for_failures()
    assert error.value.exit_code == 1
    assert f"no result of {few}: {result.failures[few]}" in result.notes
    # A second call tries again what failed, and leaves alone what is there.
    again = HereLauncher()
    run_suite(plan(suite), again)
    assert again.made == [few, "teacher/few-f0.1-s0", "teacher/digits-f0.1-s0"]


def test_the_plan_says_what_is_there_and_what_is_missing(plan, capsys):
    of_suite = plan({"inits": ["scratch", "dino"]})
    for name in ("pretrain/digits-vit_tiny-dino-s0", "finetune/digits-vit_tiny-scratch-f0.1-s0"):
        (of_suite.folder / name).mkdir(parents=True)
        (of_suite.folder / name / "result.json").write_text('{"status": "completed"}')
    print_plan(of_suite)
    said = capsys.readouterr().out
    assert re.search(r"scratch-f0.1-s0 +│ done +│ -", said)
    assert re.search(r"dino-f0.1-s0 +│ missing +│ -", said)
    assert re.search(r"pretrain +│ 1 +│ 0 +│ 0 +│ about 0 ", said)
    # 0.05 passes over a tenth of 1,294 images.
    assert re.search(r"finetune +│ 1 +│ 1 +│ 0.05 +│ about 6 ", said)
    assert list(of_suite.folder.rglob("recipe.yaml")) == []


def test_a_run_that_another_process_makes_is_waited_for_and_taken_over(plan, capsys):
    of_suite = plan({"seeds": [0, 1]})
    first, second = of_suite.cells
    (of_suite.folder / "locks").mkdir(parents=True)
    theirs = FileLock(
        of_suite.folder / "locks" / f"{first.replace('/', '-')}.lock", thread_local=False
    )
    theirs.acquire()

    def die() -> None:
        wait_for(lambda: of_suite.done(second))
        theirs.release()

    other = threading.Thread(target=die)
    other.start()
    here = HereLauncher()
    result = run_suite(of_suite, here)
    other.join()
    assert here.made == [second, first]
    assert len(result.runs) == 2
    assert f"{first}: elsewhere: another process makes it" in capsys.readouterr().err


def test_a_locked_run_is_not_made(plan):
    of_suite = plan()
    job = job_of(of_suite, of_suite.cells[0])
    with FileLock(job.lock):
        assert make_run(job).busy
    assert not (of_suite.folder / of_suite.cells[0]).exists()


def test_what_a_process_finds_wrong_is_one_line(plan):
    of_suite = plan()
    (cell,) = of_suite.cells
    recipe = merge(to_plain(of_suite.nodes[cell].recipe), {"finetune": {"init": "/nowhere"}})
    outcome = make_run(job_of(of_suite, cell, recipe=recipe))
    assert outcome == Outcome(exit_code=2, error=outcome.error)
    assert outcome.error is not None
    assert "--init /nowhere is not there" in outcome.error
    assert not outcome.stopped


def test_a_killed_start_is_begun_anew(plan):
    """What a kill before result.json leaves is no run to go on with, and no reason to refuse."""
    of_suite = plan()
    folder = of_suite.folder / of_suite.cells[0]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("{}")
    (folder / "env.json.7.part").write_text("{")
    assert run_suite(of_suite, HereLauncher()).failures == {}
    (folder / "result.json").unlink()
    (folder / "mine.txt").write_text("not of a run")
    assert "--out" in run_suite(plan(), HereLauncher()).failures[of_suite.cells[0]]
    assert (folder / "mine.txt").is_file()


@pytest.mark.slow
def test_a_suite_killed_in_mid_run_goes_on_with_the_same_weights(plan, tmp_path):
    whole, broken = plan(LONG, "whole"), plan(LONG)
    (cell,) = whole.cells
    run_suite(whole, HereLauncher())
    suite = start_suite(tmp_path)
    last = broken.folder / cell / "checkpoints" / "last.pt"
    wait_for(lambda: last.exists() or suite.poll() is not None)
    suite.kill()
    suite.communicate()
    # The run of a dead suite saves and stops.
    wait_for(lambda: status(broken, cell) != "running")
    assert status(broken, cell) == "interrupted"
    assert plan(LONG).folder == broken.folder
    run_suite(broken, HereLauncher())
    ours, theirs = weights(whole, cell), weights(broken, cell)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.run(cell).result["metrics"] == broken.run(cell).result["metrics"]


@pytest.mark.slow
def test_sigterm_saves_the_runs_in_progress(plan, capsys):
    of_suite = plan(LONG)
    (cell,) = of_suite.cells

    def stop() -> None:
        wait_for((of_suite.folder / cell / "checkpoints" / "last.pt").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    other = threading.Thread(target=stop)
    other.start()
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM with 0 of 1 cells") as error:
        run_suite(of_suite, LocalLauncher())
    other.join()
    assert error.value.exit_code == 143
    assert status(of_suite, cell) == "interrupted"
    assert f"{cell}: stopped" in capsys.readouterr().err


@pytest.mark.slow
def test_two_suites_at_once_make_every_run_once(plan, tmp_path):
    of_suite = plan({"seeds": [0, 1]})
    both = [start_suite(tmp_path) for _ in range(2)]
    said = [suite.communicate()[1] for suite in both]
    assert [suite.returncode for suite in both] == [0, 0]
    for cell in of_suite.cells:
        assert of_suite.done(cell)
        log = of_suite.folder / "logs" / f"{cell.replace('/', '-')}.log"
        assert log.read_text().count("finetune of digits -> ") == 1
        assert sum(f"{cell}: done: val/top1" in each for each in said) == 1


def test_a_killed_process_is_told_from_one_that_failed(plan):
    of_suite = plan()
    job = job_of(of_suite, of_suite.cells[0])
    process = start_process(job, {})
    process.kill()
    process.wait()
    outcome = end_process(job, process)
    assert outcome.exit_code == -signal.SIGKILL
    assert outcome.error == (
        f"killed (SIGKILL), as the system does for lack of memory: see {job.log}"
    )


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs Ray .*pip install 'smallvit\[cluster\]'"):
        RayLauncher()


@pytest.fixture(scope="module")
def ray() -> Any:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_makes_the_runs_and_stops_them(plan, ray):
    of_suite = plan({"seeds": [0, 1]})
    result = run_suite(of_suite, RayLauncher())
    assert (len(result.runs), result.failures) == (2, {})
    # So long that it is still running when Ray, on a busy machine, comes to cancel it.
    long = plan(nest({"settings.finetune.schedule.epochs": 3000.0}), "long")
    (cell,) = long.cells
    launcher = RayLauncher(num_cpus=2)
    launcher.start(job_of(long, cell))
    launcher.start(replace(job_of(long, cell), name="queued"))  # there is no room for it
    wait_for((long.folder / cell / "checkpoints" / "last.pt").exists)
    stopped = Outcome(exit_code=143)
    assert dict(launcher.stop()) == {cell: stopped, "queued": stopped}
    wait_for(lambda: status(long, cell) != "running")
    assert status(long, cell) == "interrupted"


@pytest.mark.slow
def test_a_run_that_fits_on_no_machine_of_ray_is_refused(ray):
    with pytest.raises(ConfigError, match="asks for 3 CPU, the Ray cluster has 2"):
        RayLauncher(num_cpus=3)
    with pytest.raises(ConfigError, match="asks for 1 GPU, the Ray cluster has 0"):
        RayLauncher(num_gpus=1)


def test_runs_at_a_time_share_the_cores_that_the_suite_may_use(plan, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    told = []
    monkeypatch.setattr(
        "smallvit.leaderboard.launcher.start_process", lambda _, environ: told.append(environ)
    )
    of_suite = plan()
    LocalLauncher(jobs=2).start(job_of(of_suite, next(iter(of_suite.nodes))))
    assert told == [{"OMP_NUM_THREADS": "3"}]
