import json
import math

from smallvit.engine.log import TrainLog, describe, read_metrics


def write_lines(path, steps) -> None:
    path.write_text("".join(json.dumps({"step": s, "train/loss": 0.5}) + "\n" for s in steps))


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with TrainLog(path, "test", 10, 0) as log:
        log.write(1, {"train/loss": 0.1})
        log.write(2, {"train/loss": 1 / 3}, say=True)
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
