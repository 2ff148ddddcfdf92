"""The command ``smallvit``: its sub-commands, its errors and its exit codes."""

import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from smallvit import __version__
from smallvit.cli.options import given
from smallvit.cli.stand_in import asks_for_help, stand_in_for_heavy_libraries
from smallvit.core.console import console, start_logging
from smallvit.core.errors import SmallViTError
from smallvit.core.launch import launched_number, refuse_several
from smallvit.core.once import saying_once

# Loaded when called: the help of the whole does not import torch.
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


def create_app() -> App:
    """Build the command-line application."""
    app = App(
        name="smallvit",
        help="Train Vision Transformers from scratch on small image data sets.",
        version=__version__,
        config=[given.note],
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # ``main`` says it
    )
    for name, text in COMMANDS.items():
        app.command(f"smallvit.cli.{name}_command:{name}_command", name=name, help=text)
    return app


@saying_once()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``smallvit``; ``None`` takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage or config, 3 data, 4 diverged, 130 or 143
        interrupted after saving.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    given.reset(words)
    if argv is None and asks_for_help(words):
        stand_in_for_heavy_libraries()  # the process ends with the help
    try:
        start_logging()
        if words and words[0] in COMMANDS and words[0] not in SHARED_OUT:
            refuse_several(f"smallvit {words[0]}")
        create_app()(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(" ".join(str(error).split()), 2)
    except SmallViTError as error:
        # What ended the first of several processes, that one has said.
        return error.exit_code if error.said else _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted before there was anything to save", 130)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _fail("out of memory: lower --batch-size (optim.batch_size)", 1)
        console.print(traceback.format_exc(), markup=False, highlight=False)
        return _fail("this is a fault in smallvit: please report it with the lines above", 1)
    return 0


def _fail(message: str, exit_code: int) -> int:
    if console.quiet:
        console.quiet = False
        message = f"process {launched_number()}: {message}"
    console.print(f"smallvit: {message}", markup=False, highlight=False, soft_wrap=True)
    return exit_code
