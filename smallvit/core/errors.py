"""The errors that a user can meet, each with the exit code of the command line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from smallvit.core.words import hint

ValueT = TypeVar("ValueT")
ErrorT = TypeVar("ErrorT", bound=Exception)

# Names of a list that nobody asked for: beside a name that may be meant, and alone.
MOST_BESIDE = 8
MOST_LISTED = 16
LISTINGS = {
    "dataset": "`smallvit data ls`",
    "model": "`smallvit models`",
    "recipe": "`smallvit recipes ls`",
}


class SmallViTError(Exception):
    """A failure that one line can explain; the command line prints that line and exits.

    Attributes:
        exit_code: Exit code of the command line.
        said: Whether another process has said it.
    """

    exit_code = 1
    said = False

    def __str__(self) -> str:
        """Return the message in one line, whatever the names and values in it hold."""
        text = super().__str__()
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class ConfigError(SmallViTError):
    """A setting, option or argument that cannot be used."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that no entry has; the message gives the nearest, and how to see those there are."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        listing = LISTINGS.get(kind)
        super().__init__(f"unknown {kind} {name!r}{suggest(name, known, listing=listing)}")


class DataError(SmallViTError):
    """Data that is missing, corrupt or out of reach."""

    exit_code = 3


def reason(error: Exception) -> str:
    """Return in one line what an error of the system or of a library says."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def explained(
    message: Callable[[Any], str],
    *caught: type[Exception],
    into: Callable[[str], Exception] = DataError,
) -> Iterator[None]:
    """Raise an error with one line in place of one of the system or of a library.

    Args:
        message: Makes the line out of that error.
        caught: What is replaced; ``OSError`` alone where nothing is named. An error of this
            package stays as it is.
        into: The error that is raised.
    """
    kinds = caught or (OSError,)
    try:
        yield
    except kinds as error:
        if isinstance(error, SmallViTError):
            raise
        raise into(message(error)) from error


class DivergedError(SmallViTError):
    """Training that left the finite numbers.

    Args:
        step: First optimizer step whose loss or gradient was not finite.
        metrics: Metrics at the log line that noticed it.
    """

    exit_code = 4

    def __init__(self, step: int, metrics: Mapping[str, float]) -> None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        super().__init__(
            f"the loss or its gradient became NaN or infinite at step {step} ({values}); no such "
            "update was applied: lower optim.lr, raise schedule.warmup_epochs or lower "
            "optim.grad_clip_norm"
        )
        self.step = step


class CollapsedError(SmallViTError):
    """Stage-1 training whose features or targets say the same of every image.

    Args:
        step: Steps done at the evaluation that found it.
        finding: What collapsed, with its value.
        remedy: What to change.
    """

    exit_code = 4

    def __init__(self, step: int, finding: str, remedy: str) -> None:
        super().__init__(f"training collapsed by step {step}: {finding}; {remedy}")
        self.step = step


class OutOfMemoryError(SmallViTError):
    """Too little memory for the least that a step can be cut into."""


class ProcessLostError(SmallViTError):
    """Another of the processes that train together ended without a word."""


class InterruptedRunError(SmallViTError):
    """A run that a signal stopped after its state was saved.

    Args:
        signal_number: The signal; the exit code is 128 plus it.
        message: How to continue.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def suggest(
    name: str, known: Iterable[str], *, below: Iterable[str] = (), listing: str | None = None
) -> str:
    """Return the end of an error message about ``name``: what is meant, or those there are.

    Args:
        name: What was typed.
        known: Names that would do.
        below: Dotted names of what lies in them, which may be meant as well.
        listing: Command that lists the known; ``None`` lists them here.
    """
    names = sorted(known)
    end = hint(name, names, below=below)
    if end.startswith(":"):
        return end
    if listing is not None:
        return f"{end or ';'} {listing} lists them"
    if end and len(names) > MOST_BESIDE:
        return end
    listed = ", ".join(names[:MOST_LISTED])
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{end or ';'} known: {listed}{more}"
