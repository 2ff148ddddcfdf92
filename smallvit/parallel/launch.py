"""What the environment variables of torchrun say, read without torch."""

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
    number, size = _read_number("RANK"), _read_number("WORLD_SIZE")
    if size == 1 and number == 0:
        return 0, 1  # as some clusters say of a process alone
    _read_number("MASTER_PORT")
    if number >= size:
        raise _not_torchrun("RANK")
    if not os.environ.get("MASTER_ADDR"):
        raise _not_torchrun("MASTER_ADDR")
    return number, size


def _read_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise _not_torchrun(name)
    return int(value)


def _not_torchrun(name: str) -> ConfigError:
    value = os.environ.get(name, "")
    return ConfigError(
        f"RANK is set, and {name} is {value!r}, which is not what torchrun says: unset RANK and "
        "WORLD_SIZE, or start with torchrun"
    )


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
