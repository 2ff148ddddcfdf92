"""What the public Python functions have in common: progress, offline, and messages for Python."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from smallvit.core.console import showing_progress
from smallvit.core.errors import SmallViTError
from smallvit.core.places import kept_environment

SWITCHES = ("overwrite", "dry-run", "offline", "allow-leak", "token-label", "knn", "linear")
RENAMED = {"from": "adopt"}
# An option and, where one follows, its value: a path, a number or a word that stands for one.
OPTION = re.compile(
    r"(?<![\w-])--([a-z][a-z-]*(?:\.[a-z-]+)*)"
    r"(?:[ =](?=\S*[/\d]|[A-Z]{2}|timm:)([^\s,;:]+(?::[^\s,;]+)?))?"
)


@contextmanager
def python_call(*, verbose: bool, offline: bool) -> Iterator[None]:
    """Show progress, forbid downloads where asked to, and say errors in terms of arguments.

    Args:
        verbose: Show progress; else warnings alone.
        offline: Download nothing.

    Raises:
        SmallViTError: What the work raises, with arguments named in place of options.
    """
    try:
        with kept_environment(offline=offline), showing_progress(verbose=verbose):
            yield
    except SmallViTError as error:
        error.args = tuple(in_python(arg) if isinstance(arg, str) else arg for arg in error.args)
        raise


def in_python(message: str) -> str:
    """Name arguments of Python in place of the options of a message.

    Commands in it, between ```` ` ```` or quotes or after ``next:``, stay commands.
    """
    parts = re.split(r"(`[^`]*`|'smallvit [^']*')", message)
    return "".join(
        part if part.startswith(("`", "'smallvit ")) else OPTION.sub(_as_argument, part)
        for part in parts
    )


def _as_argument(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    if name in SWITCHES:
        return f"{name.replace('-', '_')}=True" + ("" if value is None else f" {value}")
    section, _, key = RENAMED.get(name, name).replace("-", "_").rpartition(".")
    shown = "..." if value is None else value if _is_plain(value) else f'"{value}"'
    if not section:
        return f"{key}={shown}"
    return f'{section}={{"{key}": {shown}}}'


def _is_plain(value: str) -> bool:
    """Tell whether a value stands for itself: a number, or a word such as NAME."""
    return value.isupper() or re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) is not None
