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
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    number, size, _, address = texts = [os.environ.get(name, "") for name in names]
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    if (number, size) == ("0", "1"):  # as some clusters say of a process alone
        return 0, 1
    wrong = [name for name, text in zip(names[:3], texts, strict=False) if not text.isdecimal()]
    if not wrong and int(number) >= int(size):
        wrong = ["RANK"]
    if not wrong and not address:
        wrong = ["MASTER_ADDR"]
    if wrong:
        raise ConfigError(
            f"RANK is set, and {wrong[0]} is {os.environ.get(wrong[0], '')!r}, which is not what "
            "torchrun says: unset RANK and WORLD_SIZE, or start with torchrun"
        )
    return int(number), int(size)


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
