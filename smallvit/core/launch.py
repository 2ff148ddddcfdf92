"""What torchrun says of the processes that it started, before they know each other."""

import os

from smallvit.core.errors import ConfigError


def launched() -> int:
    """Return how many processes torchrun started; 1 without it.

    Raises:
        ConfigError: If what the environment says is not from torchrun.
    """
    return _read()[1]


def launched_number() -> int:
    """Return the number that torchrun gave this process, from 0."""
    return _read()[0]


def _read() -> tuple[int, int]:
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise ConfigError(
                f"RANK is set, and {name} is {value!r}, which is not what torchrun says: unset "
                "RANK and WORLD_SIZE, or start with torchrun"
            )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


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
