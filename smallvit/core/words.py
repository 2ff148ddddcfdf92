"""What people type, and which name they mean.

The words of other tools and of habit come before likeness: ``lr`` is nearer to ``log`` than to
``optim.lr`` in letters alone. Names are those of settings, as a recipe writes them; an option is
the same with dashes in front. A name may be followed by the value that is meant.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

LIKE = 0.6  # of difflib, from 0 to 1: below it, words share little more than some letters
MOST_NEAR = 3


@cache
def read_tables() -> dict[str, dict[str, Any]]:
    """Return the tables of words.yaml, which says what each is."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def meant(word: str, known: Iterable[str]) -> list[str]:
    """Return the known names that people mean by a word, three at most.

    Args:
        word: What was typed, such as ``--lr``, ``lr`` or ``learning-rate``.
        known: Names that would do, with dots where they lie in sections.

    Returns:
        Names as ``known`` writes them, a meant value after a space: those of the table, else
        settings of that name in other sections.
    """
    names, plain = {_plain(name): name for name in known}, _plain(word)
    found = []
    for targets, words in read_tables()["meant"].items():
        for target in targets.split(", ") if plain in words.split() else ():
            name, _, value = target.partition(" ")
            found += [f"{each} {value}".rstrip() for each in _called(name, names)]
    section, _, leaf = plain.rpartition(".")
    # ``method.name`` is what ``method`` names.
    rest = section if leaf == "name" else leaf
    return (found or _called(plain, names) or _called(rest, names))[:MOST_NEAR]


def alike(word: str, known: Iterable[str]) -> list[str]:
    """Return the known name that shares most letters with a word, if any shares enough."""
    names, plain = {_plain(name): name for name in known}, _plain(word)
    close = difflib.get_close_matches(plain, names, n=1, cutoff=LIKE)
    close = close or [name for name in names if sorted(name) == sorted(plain)][:1]  # ``rl``
    return [names[name] for name in close]


def either(names: Sequence[str], word: str = "or") -> str:
    """Join names as ``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def hint(
    word: str, known: Iterable[str], *, below: Iterable[str] = (), show: Callable[[str], str] = repr
) -> str:
    """Return the end of a message about an unknown word: what is meant, or why nothing is needed.

    Args:
        word: What was typed.
        known: Names that would do.
        below: Dotted names of what lies in them, which may be meant as well.
        show: How a name is written, with the value that is meant after a space.

    Returns:
        ``; did you mean A or B?``, a colon and the reason, or nothing.
    """
    names = list(known)
    near = meant(word, [*names, *below])
    if not near and (reason := unneeded(word)):
        return f": {reason}"
    near = near or alike(word, names)
    return f"; did you mean {either([show(each) for each in near])}?" if near else ""


def command_hint(words: Sequence[str]) -> str:
    """Return what to do in place of a command that there is not, if the table knows.

    Args:
        words: The command line from the command on: ``["predict"]`` or ``["runs", "rm"]``.
    """
    *above, word = words
    if not above:
        return _look_up("commands", word.lower())
    if word.lower() in ("list", "all"):
        return f"`smallvit {above[0]} ls` lists them"
    return _look_up(f"commands of {above[0]}", word.lower())


def needed(command: str) -> str:
    """Return what a command needs by its place and where that is found, if the table knows."""
    return _look_up("needed", command, ", ")


def unneeded(word: str) -> str:
    """Return why no setting of that name is needed, if the table knows."""
    return _look_up("unneeded", _plain(word))


def _look_up(table: str, word: str, between: str | None = None) -> str:
    """Return what a table says of a word; nothing where no key of it has the word."""
    entries = read_tables().get(table, {}).items()
    return next((text for words, text in entries if word in words.split(between)), "")


def _called(name: str, names: dict[str, str]) -> list[str]:
    """Return the name itself if it is known, else those of the fewest sections that end with it."""
    if name in names:
        return [names[name]]
    found = [plain for plain in names if plain.endswith(f".{name}")]
    depth = min((plain.count(".") for plain in found), default=0)
    return [names[plain] for plain in found if plain.count(".") == depth]


def _plain(word: str) -> str:
    return word.strip().lstrip("-").lower().replace("-", "_")
