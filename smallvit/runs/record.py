"""The record of a run while it works: result.json, train.log, and what ended it."""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from smallvit.core import places
from smallvit.core.errors import (
    DataError,
    InterruptedRunError,
    SmallViTError,
    attempt,
    explained,
)
from smallvit.core.run_folder import (
    create_folder,
    hold_folder,
    new_folder,
    write_json,
    write_recipe,
)
from smallvit.engine.checkpoint import drop_previous
from smallvit.parallel import processes
from smallvit.runs.learned import Learned, Learns, write_learned
from smallvit.runs.session import Session

logger = logging.getLogger("smallvit")
# What a file system that is full or read-only says; other errors are not about its state.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def working_run(
    session: Session, facts: dict[str, Any], *, learns: Learns, learned: Learned
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Have the folder of a run while its stage works, with its recipe, environment and record.

    Args:
        session: What the stage works with.
        facts: What result.json says from the start; ``stage``, ``dataset``, ``model`` and ``seed``
            are among it.
        learns: What the run learns from.
        learned: What the runs that it builds on learned.

    Yields:
        The folder, and a mapping that is merged into result.json at the end.

    Raises:
        ConfigError: If the folder is taken, or another process holds it.
        DataError: If a file of the run cannot be written.
    """
    folder = Path(processes.on_first(partial(_open_folder, session, facts)))
    logger.info("%s of %s -> %s", facts["stage"], session.dataset.name, folder)

    def describe() -> None:
        write_json(folder / "env.json", session.environment(facts))
        write_learned(folder, session.dataset, learns, learned)

    first = processes.is_first()
    with _recorded(folder, facts, session.resumed) if first else nullcontext({}) as record:
        processes.on_first(describe)
        yield folder, record
    processes.any_of(False)  # the others wait until result.json is written


def _open_folder(session: Session, facts: dict[str, Any]) -> str:
    """Make the run folder with its recipe, or take the one to go on in."""
    call = session.call
    if call.resume is not None:
        return str(call.resume)
    label = f"{facts['stage']}-{facts['model']}-s{facts['seed']}"
    folder = call.out or new_folder(places.runs_dir(), session.dataset.name, label)
    create_folder(folder, overwrite=call.overwrite)
    write_recipe(folder / "recipe.yaml", session.values)
    return str(folder)


@contextmanager
def _recorded(folder: Path, facts: dict[str, Any], resumed: bool) -> Iterator[dict[str, Any]]:
    """Hold a run folder and keep its result.json true while a stage runs.

    Args:
        folder: The run's folder.
        facts: What result.json says from the start.
        resumed: Whether the run is continued; it keeps the time that it was started.

    Yields:
        A mapping that is merged into result.json at the end.

    Raises:
        ConfigError: If another process holds the folder.
        DataError: If a file of the run cannot be written.
    """
    path = folder / "result.json"
    with hold_folder(folder):
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if resumed and path.is_file():
            started = json.loads(path.read_text()).get("started", started)
        base = {"status": "running", "started": started, **facts}
        write_json(path, base)
        record: dict[str, Any] = {}
        try:
            with _train_log(folder / "train.log"), _explained(folder):
                yield record
        except BaseException as error:
            stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
            ended = {**base, **record, "status": "interrupted" if stopped else "failed"}
            if not stopped:
                ended["error"] = str(error) if isinstance(error, SmallViTError) else repr(error)
            _, fault = attempt(partial(write_json, path, ended), DataError)
            if fault is not None:  # what ended the run is the news
                logger.warning("%s", fault)
            raise
        write_json(path, {**base, **record, "status": "completed"})
        drop_previous(folder / "checkpoints")


@contextmanager
def _train_log(path: Path) -> Iterator[None]:
    """Write what is logged to a file as well.

    Raises:
        DataError: If the file cannot be written, as soon as that is noticed.
    """
    with explained(lambda error: _unwritable(path, error)):
        handler = _TrainLogHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # what is still to be written, on a full disk
            handler.close()


class _TrainLogHandler(logging.FileHandler):
    """A log file that ends the run when it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise where a log line failed on its way to the disk."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger.removeHandler(self)
        raise DataError(_unwritable(self.baseFilename, error)) from error


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Explain a file system that refuses a file of the run, whoever writes it.

    Raises:
        DataError: In place of the error of a full or read-only file system.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = error
        if not isinstance(cause, OSError):  # it has no error number
            no_room = os.strerror(errno.ENOSPC)
            number = errno.ENOSPC if no_room in str(error) else None
            cause = OSError(number, no_room, str(folder / "export"))
        if cause.errno not in UNWRITABLE:
            raise
        raise DataError(_unwritable(cause.filename or folder, cause)) from error


def _unwritable(path: Path | str, error: OSError) -> str:
    return (
        f"cannot write {path} ({error.strerror}): free some room or make it writable, and continue "
        "with --resume"
    )
