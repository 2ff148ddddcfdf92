"""What torchrun says of the processes that it started, before they know each other."""

import os

from smallvit.core.errors import ConfigError


def launched() -> int:
    """Return how many processes torchrun started; 1 without it."""
    given = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    return int(given) if given.isdecimal() else 1


def launched_number() -> int:
    """Return the number that torchrun gave this process, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def refuse_several(work: str) -> None:
    """Refuse several processes for work that is not shared out.

    Args:
        work: What it is.

    Raises:
        ConfigError: Under torchrun with several.
    """
    if launched() > 1:
        raise ConfigError(
            f"{work} is the work of one process, and torchrun started {launched()}: call smallvit "
            "without it"
        )
