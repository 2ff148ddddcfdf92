import json
import os
import subprocess
import sys

import pytest

from smallvit.cli.app import COMMANDS, main
from smallvit.cli.stand_in import asks_for_help

# Every command and, where it has any, one of its own commands.
PAGES = [[], *([name] for name in COMMANDS)]
PAGES += [["data", "show"], ["recipes", "check"], ["runs", "show"]]

# Each page as its own process would show it, and the heavy libraries that were loaded for it.
SHOW = """
import contextlib, io, json, sys
from smallvit.cli.app import main
pages = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["smallvit", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert main() == 0, words
    pages.append(page.getvalue())
heavy = "torch torchvision timm lightly sklearn scipy matplotlib".split()
loaded = [name for name in heavy if getattr(sys.modules.get(name), "__file__", None)]
print(json.dumps([loaded, pages]))
"""


@pytest.fixture(scope="module")
def shown() -> tuple[list[str], dict[str, str]]:
    """What a new process loads for the help of all commands, and the pages."""
    code = [sys.executable, "-W", "error", "-c", SHOW, json.dumps(PAGES)]
    env = os.environ | {"COLUMNS": "200"}  # as the pages of this process have
    done = subprocess.run(code, capture_output=True, check=False, text=True, env=env)
    assert done.returncode == 0, done.stderr
    loaded, pages = json.loads(done.stdout)
    return loaded, {" ".join(words): page for words, page in zip(PAGES, pages, strict=True)}


def test_no_help_loads_a_heavy_library(shown):
    assert shown[0] == []


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_says_the_same_as_with_the_libraries(words, shown, capsys):
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert "Usage: smallvit" in page
    assert shown[1][" ".join(words)] == page


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], True),
        (["pretrain", "--dataset", "digits", "-h"], True),
        (["pretrain", "--dataset", "digits"], False),
        (["runs", "show", "--", "--help"], False),
    ],
)
def test_help_is_told_by_its_flags(words, expected):
    assert asks_for_help(words) == expected


def test_a_caller_in_the_same_process_gets_no_stand_ins():
    code = (
        "import sys\n"
        "from smallvit.cli.app import main\n"
        "assert main(['--help']) == 0\n"
        "import torch\n"
        "assert torch.zeros(2).tolist() == [0, 0]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
