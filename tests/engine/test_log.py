import io
import json
import math
import time

import pytest
from rich.console import Console

from smallvit.core.console import format_duration, track
from smallvit.engine import log as engine_log
from smallvit.engine.log import TrainLog, describe, read_metrics


def write_lines(path, steps) -> None:
    path.write_text("".join(json.dumps({"step": s, "train/loss": 0.5}) + "\n" for s in steps))


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with TrainLog(path, "test", 10, 0) as log:
        log.write(1, {"train/loss": 0.1})
        log.write(2, {"train/loss": 1 / 3})
    assert read_metrics(path) == [
        {"step": 1, "train/loss": 0.1},
        {"step": 2, "train/loss": 1 / 3},
    ]


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [2, 4, 6, 8])
    with TrainLog(path, "test", 10, 4) as log:
        log.write(6, {"train/loss": 0.25})
    assert [row["step"] for row in read_metrics(path)] == [2, 4, 6]
    assert read_metrics(path)[-1]["train/loss"] == 0.25


def test_a_new_run_starts_with_no_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [2, 4])
    TrainLog(path, "test", 10, 0)
    assert read_metrics(path) == []


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [2, 4])
    with path.open("a") as file:
        file.write('{"step": 6, "train/lo')
    assert [row["step"] for row in read_metrics(path)] == [2, 4]
    with TrainLog(path, "test", 10, 4) as log:
        log.write(6, {"train/loss": 0.25})
    assert [row["step"] for row in read_metrics(path)] == [2, 4, 6]


def test_values_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with TrainLog(path, "test", 10, 0) as log:
        log.write(1, {"val/top1": math.nan, "train/loss": math.inf})
    assert read_metrics(path) == [{"step": 1, "val/top1": None, "train/loss": None}]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_run_without_a_folder_writes_nothing(tmp_path):
    with TrainLog(None, "test", 10, 0) as log:
        log.write(1, {"train/loss": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_the_line_for_a_person_names_what_there_is():
    line = describe({"train/loss": 1.23456, "val/top1": 0.98765, "opt/lr": 0.1})
    assert line == "loss 1.235  val 98.77%"


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.2, "0 s"),
        (12, "12 s"),
        (59.7, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7500, "2 h 05 min"),
        (57579, "16 h 00 min"),
        (406800, "113 h 00 min"),
    ],
)
def test_durations_are_in_hours_and_minutes(time_s, text):
    assert format_duration(time_s) == text


def test_a_line_at_least_every_ten_seconds_while_a_step_takes_longer(told, monkeypatch):
    monkeypatch.setattr(engine_log, "QUIET_S", 0.3)
    with TrainLog(None, "test", 4, 0) as log:
        time.sleep(0.9)
        log.move(1)
        with log.pausing("evaluating"):
            time.sleep(0.6)
    lines = told()
    assert len(lines) >= 3
    assert lines[0].startswith("test  step 0/4 (0 %)  next step since 0 s")
    assert lines[-1].startswith("test  step 1/4 (25 %)  evaluating since ")


def test_the_first_step_of_a_long_run_is_told_at_once():
    with TrainLog(None, "test", 10_000, 0) as log:
        time.sleep(0.01)
        log.move(1)
        assert log.is_due
        log.say({"train/loss": 0.5})
        log.move(2)
        assert not log.is_due


def test_a_run_that_is_over_at_once_has_no_lines_of_its_first_steps():
    with TrainLog(None, "test", 10, 0) as log:
        time.sleep(0.01)
        log.move(1)
        assert not log.is_due


def test_time_left_is_said_from_the_second_step_on_with_the_evaluations(told):
    """The first step takes longer than those to come: it does not count."""
    with TrainLog(None, "test", 101, 0, pauses_after=lambda _: 3) as log:
        time.sleep(0.3)
        log.move(1)
        assert "left" not in log.times
        for step in (2, 3):
            time.sleep(0.05)
            log.move(step)
        with log.pausing("evaluating"):
            time.sleep(1.0)
        log.say({})
    # 98 steps of 0.05 s and three evaluations of 1 s.
    left = float(told()[-1].rpartition(", ")[2].removesuffix(" s left"))
    assert 7.5 <= left <= 11


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
def test_the_bar_moves_each_step_and_says_how_far_it_is(width, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, height=20)
    monkeypatch.setattr(engine_log, "console", terminal)
    with TrainLog(None, "pretrain", 1214, 0) as log:
        for step in (1, 2, 3):
            time.sleep(0.01)
            log.move(step)
            log._bar.refresh()
            assert f"{step}/1214" in screen.getvalue()
        log.write(3, {"train/loss": 5.3, "perf/images_per_s": 25.0})
        log._bar.refresh()
    last = screen.getvalue()
    assert "0 %" in last
    assert " left" in last
    assert ("loss 5.300" in last) == (width >= 100)


def test_progress_without_a_terminal_says_the_time_left_in_minutes(told, monkeypatch, caplog):
    clock = iter([0.0, 10.5, 11.0, 21.6, 30.0])
    monkeypatch.setattr("smallvit.core.console.time.monotonic", lambda: next(clock))
    for _ in track(range(100), "step", 400):
        if len(caplog.records):
            break
    told_lines = [record.getMessage() for record in caplog.records]
    assert told_lines == ["step: 0 %, 1 h 10 min left"]
