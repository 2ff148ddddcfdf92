"""What the command line says of words that it does not take, in one line with what would do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from smallvit.core.errors import suggest
from smallvit.core.words import command_hint, hint, needed, unneeded
from smallvit.data.files.registry import DATASETS


def explain(error: CycloptsError, words: Sequence[str], commands: Sequence[str]) -> str:
    """Return one line for a command line that could not be read.

    Args:
        error: What cyclopts says of it.
        words: The command line.
        commands: Names of all commands.
    """
    command = " ".join(error.command_chain or ()).removeprefix("smallvit").strip()
    match error:
        case UnknownCommandError():
            return _unknown_command(error, words, commands)
        case UnknownOptionError():
            return _unknown_option(error, command)
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            return _bare_word(word, command)
        case MissingArgumentError() if error.argument is not None:
            name = error.keyword or error.argument.name
            if name.startswith("--"):
                given = any(word.partition("=")[0] == name for word in words)
                what = f"{name} needs a value" if given else f"{command} needs {name}"
                return f"{what}: `smallvit {command} --help` says which"
            what = needed(command) or f"{name}: `smallvit {command} --help` says what that is"
            return f"{command} needs {what}"
        case CoercionError(msg=None, token=Token() as token, target_type=kind):
            if get_origin(kind) is Literal:
                name = token.keyword or (error.argument.name if error.argument else "value")
                end = suggest(token.value, map(str, get_args(kind)))
                return f"{name}: cannot be {token.value!r}{end}"
            if token.keyword and kind in (int, float):
                what = "a whole number" if kind is int else "a number"
                return f"{token.keyword}: must be {what}, got {token.value!r}"
        case RepeatArgumentError(token=token):
            return f"{token.keyword} is given twice: give it once"
    return " ".join(str(error).split())


def _unknown_command(
    error: UnknownCommandError, words: Sequence[str], commands: Sequence[str]
) -> str:
    assert error.unused_tokens
    word = error.unused_tokens[0]
    above = list(words[: words.index(word)]) if word in words else []
    above = [name for name in above if name in commands][:1]
    fault = f"unknown command {' '.join([*above, word])!r}"
    if word.startswith("-"):
        reason = unneeded(word) or "options stand behind a command: `smallvit --help` lists them"
        return f"unknown option {word}: {reason}"
    if instead := command_hint([*above, word]):
        return f"{fault}: {instead}"
    known = [name for name in (error.app or ()) if not name.startswith("-")]
    return f"{fault}{suggest(word, known)}"


def _unknown_option(error: UnknownOptionError, command: str) -> str:
    word = (error.token.keyword or error.token.value).partition("=")[0]
    known = [
        name.removeprefix("--")
        for argument in error.argument_collection
        if argument.parse
        for name in argument.names
        if name.startswith("--") and not name.startswith("--no-")
    ]
    fault = f"unknown option {word}"
    if word.startswith("--no-") and word.removeprefix("--no-") in known:
        return f"{fault}: --{word.removeprefix('--no-')} is off unless it is given, leave it out"
    if end := hint(word, known, show="--{}".format):
        return f"{fault}{end}"
    return f"{fault}: `smallvit {command} --help` lists those there are".replace("  ", " ")


def _bare_word(word: str, command: str) -> str:
    """Say what to do with a word that stands where no word is taken."""
    fault = f"{command} does not take {word!r}"
    key, equals, value = word.partition("=")
    if equals and key.strip():
        return f"{fault}: options are written --{key.lstrip('-').replace('_', '-')} {value}"
    if word.lower() in ("true", "false", "yes", "no", "on", "off"):
        return f"{fault}: a switch has no value, give it or leave it out"
    if word in DATASETS or word.startswith("hf:"):
        return f"{fault}: a data set is named by --dataset {word}"
    path = Path(word)
    if (path / "result.json").is_file():
        return f"{fault}: a run to start from is --init {word}, one to go on with --resume {word}"
    if path.suffix in (".yaml", ".yml"):
        return f"{fault}: a recipe is named by --recipe {word}"
    if path.exists():
        return f"{fault}: images are named by --data {word}"
    return f"{fault}: data are named by --dataset NAME or --data PATH, a recipe by --recipe NAME"
