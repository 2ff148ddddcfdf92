"""The command ``smallvit``: its sub-commands, its errors and its exit codes."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from smallvit import __version__
from smallvit.cli.mistakes import explain
from smallvit.cli.options import Given
from smallvit.cli.streams import lasting_streams
from smallvit.core.console import console, kept_logging, say, start_logging
from smallvit.core.errors import SmallViTError
from smallvit.core.once import saying_once
from smallvit.core.places import apply_offline, kept_environment
from smallvit.parallel.launch import launched_number, refuse_several

# Their files import torch inside functions alone: help is to be quick.
COMMANDS = {
    "quickstart": "Run the whole pipeline on embedded digits, offline on the CPU, in 3 minutes.",
    "data": "List, describe, fetch, check or draw data sets and images of your own.",
    "models": "List models with parameters, multiply-adds and token grid.",
    "convert": "Turn the public weights of a paper into an export that --init reads.",
    "recipes": "List, show and check recipes.",
    "pretrain": "Stage 1: pretrain on the target images, without labels.",
    "teacher": "Train the annotator of stage 2 on the same training split.",
    "label": "Write a teacher's score maps of the training split.",
    "finetune": "Stage 2: train on labels and, with --token-label, on score maps.",
    "segment": "Train a segmentation head on images and masks of class indices.",
    "run": "Run every stage of a recipe and show what each brought.",
    "eval": "Score one run.",
    "bench": "Put fine-tuned runs in a leaderboard.",
    "runs": "List and show runs.",
    "doctor": "Show versions, devices and folders, and what is missing.",
}
# Commands that several processes of torchrun do together.
SHARED_OUT = ("pretrain", "teacher", "finetune", "segment")
# Commands whose values are a recipe's where they are not given, so that no default is a fact.
OF_RECIPES = ("pretrain", "teacher", "label", "finetune", "segment", "run")


def create_app(called: str = "", given: Given | None = None) -> App:
    """Build the command-line application.

    Args:
        called: The command to come, whose page is its own docstring, not its line in the list.
        given: Where the options given are noted.
    """
    app = App(
        name="smallvit",
        help="Train Vision Transformers from scratch on small image data sets.",
        version=__version__,
        version_flags=["--version", "-V"],
        config=[] if given is None else [given.note],
    )
    for name, text in COMMANDS.items():
        options: dict[str, Any] = {} if name == called else {"help": text}
        if name in OF_RECIPES:
            options["default_parameter"] = Parameter(show_default=False)
        app.command(f"smallvit.cli.{name}_command:{name}_command", name=name, **options)
    return app


@saying_once()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    It leaves the process as it found it: streams, log, environment and random numbers.

    Args:
        argv: Words after ``smallvit``; ``None`` takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage or config, 3 data, 4 diverged, 130 or 143
        interrupted after saving.
    """
    words = _as_options(list(sys.argv[1:] if argv is None else argv))
    try:
        with lasting_streams(), kept_logging(), kept_environment():
            return _answer(words)
    except SmallViTError as error:  # of the streams
        return _fail(str(error), error.exit_code)


def _answer(words: list[str]) -> int:
    try:
        start_logging()
        if words and words[0] in COMMANDS and words[0] not in SHARED_OUT:
            refuse_several(f"smallvit {words[0]}")
        given = Given(argv=words)
        command, bound, unparsed = create_app(words[0] if words else "", given).parse_args(
            words, exit_on_error=False, print_error=False
        )
        apply_offline(given.options.get("offline", False))
        command(*bound.args, **bound.kwargs, **({"given": given} if "given" in unparsed else {}))
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return _explain(error, words)
    return 0


def _explain(error: BaseException, words: list[str]) -> int:
    """Say what ended a command, and return its exit code."""
    match error:
        case CycloptsError():
            return _fail(explain(error, words, list(COMMANDS)), 2)
        case SmallViTError():
            # What ended the first of several processes, that one has said.
            return error.exit_code if error.said else _fail(str(error), error.exit_code)
        case KeyboardInterrupt():
            return _fail("interrupted before there was anything to save", 130)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _fail("out of memory: lower --batch-size (optim.batch_size)", 1)
    console.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
    return _fail("this is a fault in smallvit: please report it with the lines above", 1)


def _as_options(words: list[str]) -> list[str]:
    """Take ``help``, ``help COMMAND`` and ``version`` for the options of that name."""
    if words[:1] == ["help"]:
        return [*words[1:], "--help"]
    return ["--version"] if words == ["version"] else words


def _fail(message: str, exit_code: int) -> int:
    if console.quiet:
        console.quiet = False
        message = f"process {launched_number()}: {message}"
    say(f"smallvit: {message}")
    return exit_code
