import json
import subprocess
import sys

import pytest

from smallvit.cli.app import COMMANDS, main

# Every command and, where it has any, one of its own commands.
PAGES = [[], *([name] for name in COMMANDS)]
PAGES += [["data", "show"], ["recipes", "check"], ["runs", "show"]]
HEAVY = ["torch", "torchvision", "timm", "lightly", "sklearn", "scipy", "matplotlib", "numpy"]

# What a process has loaded once it has shown the help of all commands.
LOADED = """
import contextlib, io, json, sys
from smallvit.cli.app import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words, "--help"]) == 0, words
print(json.dumps(list(sys.modules)))
"""


def test_no_help_loads_a_heavy_library():
    code = [sys.executable, "-W", "error", "-c", LOADED, json.dumps(PAGES)]
    done = subprocess.run(code, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert set(HEAVY).isdisjoint(json.loads(done.stdout))


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_every_command_has_help(words, capsys):
    assert main([*words, "--help"]) == 0
    assert "Usage: smallvit" in capsys.readouterr().out
