"""The Python functions take what their commands take, by the same names."""

import inspect

import pytest

import smallvit as sv
from smallvit.cli.app import COMMANDS, create_app
from smallvit.cli.options import Given

# What one of them alone has: Python's printing and its place for further settings; runs, which
# Python has as objects; names that Python does not have, and how it calls them.
OF_PYTHON = {"verbose", "more"}
OF_COMMANDS = {
    "teacher": {"from": {"adopt"}},
    "label": {"label": {"top_k", "temperature", "flip", "batch_size"}},
    "run": {"recipe": {"recipe"}},
    "bench": {
        "runs": {"runs"},
        # Suites are for the command line.
        **{key: set() for key in ("launcher", "jobs", "node_cpus", "node_gpus", "dry_run")},
    },
}
FUNCTIONS = ("pretrain", "teacher", "label", "finetune", "run", "bench")


def options_of(command: str) -> set[str]:
    """Return the options of a command by the part before a dot."""
    app = create_app(command, Given())[command]
    names = {argument.name for argument in app.assemble_argument_collection() if argument.parse}
    named = {name.removeprefix("--").partition(".")[0] for name in names if name.startswith("--")}
    return {name.replace("-", "_") for name in named}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_options_of_its_command(name):
    taken = set(inspect.signature(getattr(sv, name)).parameters) - OF_PYTHON
    expected = options_of(name)
    for option, called in OF_COMMANDS.get(name, {}).items():
        expected = (expected - {option}) | called
    assert taken == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented(name):
    function = getattr(sv, name)
    for parameter in inspect.signature(function).parameters:
        assert f"\n        {parameter}: " in (function.__doc__ or "").replace("**", "")


def test_every_function_is_a_command_by_its_name():
    assert set(FUNCTIONS) <= set(COMMANDS)
    assert set(FUNCTIONS) <= set(sv.__all__)
