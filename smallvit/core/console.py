"""The terminal: one console for progress and log lines alike."""

import logging
import os
import warnings
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from smallvit.core.errors import ConfigError, suggest

console = Console(stderr=True)
logger = logging.getLogger("smallvit")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def start_logging() -> None:
    """Send log lines and Python warnings to the terminal, at the level of SMALLVIT_LOG_LEVEL.

    Raises:
        ConfigError: If that level is unknown.
    """
    level = os.environ.get("SMALLVIT_LOG_LEVEL", "INFO").upper()
    if level not in LEVELS:
        raise ConfigError(f"SMALLVIT_LOG_LEVEL is {level!r}{suggest(level, LEVELS)}")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False
        )
    else:
        handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    logger.warning("warning: %s", message)
