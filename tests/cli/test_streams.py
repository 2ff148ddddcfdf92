"""No terminal, encoding or pipe ends in a traceback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallvit.cli.app import main

PAGES = [
    ["--help"],
    ["pretrain", "--help"],
    ["data", "ls"],
    ["data", "info", "digits"],
    ["models", "vit_tiny"],
    ["recipes", "ls"],
    ["recipes", "show", "digits/vit_tiny"],
    ["runs", "ls"],
    ["runs", "show", "runs/d/bär-[x]"],
    ["doctor"],
    ["bench", "digits", "--dry-run"],
]


@pytest.fixture(autouse=True)
def run(tmp_path: Path) -> Path:
    """A run whose name has letters that not every encoding has, and rich's brackets."""
    folder = tmp_path / "runs" / "d" / "bär-[x]"
    folder.mkdir(parents=True)
    result = {"started": "2026-01-01T00:00:00", "stage": "finetune", "status": "failed"}
    (folder / "result.json").write_text(json.dumps(result | {"dataset": "día 日"}))
    (folder / "env.json").write_text("{}")
    return folder


class Pipe(io.StringIO):
    """A pipe whose reader leaves at once, as ``head`` may."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_letters_that_the_encoding_lacks_are_written_as_escapes(words, encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(words) == 0
    streams[0].flush()
    assert len(streams[0].buffer.getvalue()) > 50


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
@pytest.mark.parametrize("variables", [{"COLUMNS": "20"}, {"COLUMNS": "0"}, {"TERM": "dumb"}])
def test_terminals_of_any_kind_are_written_to(words, variables, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for forced in ("0", "1"):
        monkeypatch.setenv("FORCE_COLOR", forced)
        assert main(words) == 0
    assert len(capsys.readouterr().out) > 50


@pytest.mark.parametrize("words", [*PAGES, ["nonsense"]], ids=" ".join)
def test_a_reader_that_leaves_ends_nothing(words, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Pipe())
    monkeypatch.setattr(sys, "stderr", Pipe())
    assert main(words) == (2 if words == ["nonsense"] else 0)


@pytest.mark.parametrize("words", [["data", "ls"], ["nonsense"]], ids=" ".join)
def test_closed_streams_end_nothing(words, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(words) == (2 if words == ["nonsense"] else 0)


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["data", "ls"]) == 1
        monkeypatch.undo()
        assert "cannot write the output (No space left on device)" in capsys.readouterr().err
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_process_whose_reader_leaves_ends_without_a_word():
    code = (
        "import sys; from smallvit.cli.app import main; sys.argv = ['smallvit', 'data', 'ls'];"
        "sys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_name_that_is_no_unicode_is_written(tmp_path, monkeypatch, capsys):
    strange = os.fsdecode(b"runs-\xff")
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", strange)
    assert main(["runs", "ls"]) == 3
    assert "no run under" in capsys.readouterr().err


def test_a_list_in_a_pipe_keeps_whole_paths(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["runs", "ls"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "finetune" in line]
    assert "runs/d/bär-[x]" in line


def test_a_list_on_a_narrow_terminal_cuts_no_path(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["runs", "ls"]) == 0
    said = capsys.readouterr().out
    assert "runs/d/bär-[x]" in said
    assert "stage: finetune" in said


@pytest.mark.parametrize("words", [["runs", "ls", "--json"], ["recipes", "ls", "--json"]])
def test_lists_are_json_on_request(words, capsys):
    assert main(words) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_a_runs_folder_that_is_a_dead_link_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "link"))
    assert main(["runs", "ls"]) == 3
    assert "which is not there: mount or make that, or remove the link" in capsys.readouterr().err
    assert main(["doctor"]) == 3


@pytest.mark.parametrize("name", ["SMALLVIT_LOG_LEVEL", "SMALLVIT_OFFLINE", "SMALLVIT_RUNS_DIR"])
def test_a_variable_set_to_nothing_is_as_if_not_set(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "")
    assert main(["runs", "ls"]) == 0


def test_a_command_leaves_streams_and_log_as_they_were(capsys):
    import logging

    before = sys.stdout, sys.stderr, logging.getLogger("smallvit").handlers[:]
    assert main(["data", "ls"]) == 0
    assert (sys.stdout, sys.stderr, logging.getLogger("smallvit").handlers[:]) == before
