"""What a stage works with: device, data and settings; and its folder with the record of the run."""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from smallvit.core import places
from smallvit.core.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    SmallViTError,
    explained,
)
from smallvit.core.run_folder import (
    Run,
    check_target,
    create_folder,
    environment,
    hold_folder,
    new_folder,
    write_json,
    write_recipe,
)
from smallvit.data.dataset import Dataset
from smallvit.engine.checkpoint import drop_previous
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.parallel import processes
from smallvit.parallel.process_group import process_group
from smallvit.runs.config import AnyStage, Call, Recipe, SegmentRecipe
from smallvit.runs.data import check_out, load_dataset
from smallvit.runs.learned import Learned, Learns, write_learned
from smallvit.runs.moved import check_same
from smallvit.runs.recipe import open_unfinished, refuse_changes, run_values, stage_values
from smallvit.segment.data import SegmentData, load_segment_data


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a stage works with.

    Attributes:
        call: How it was called.
        runtime: Device and precision.
        data: Images and splits, on the device; with their masks for a segmentation.
        values: Every setting of the run, for recipe.yaml.
    """

    call: Call
    runtime: Runtime
    data: Dataset | SegmentData
    values: dict[str, Any]

    @property
    def dataset(self) -> Dataset:
        """The images and splits."""
        return self.data.dataset if isinstance(self.data, SegmentData) else self.data

    @property
    def resumed(self) -> bool:
        """Whether a run is continued."""
        return self.call.resume is not None

    def environment(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the contents of env.json.

        Args:
            facts: What result.json says; of them what the run saw beside its data.
        """
        dataset = self.dataset
        return {
            **environment(self.call.argv),
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "compiled": self.runtime.compiled,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": processes.count(),
            "threads": torch.get_num_threads(),
            "dataset": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "class_names": list(self.data.class_names),
                "counts": {name: len(split) for name, split in dataset.splits.items()},
                "broken": list(dataset.broken),
                "notes": list(dataset.notes),
                "grey_range": dataset.grey_range,
            },
            "split_hashes": dataset.split_hashes,
            "teacher": facts.get("teacher"),
            "extra_data": facts.get("extra_data", "none"),
        }


@contextmanager
def open_session(recipe: Recipe | SegmentRecipe, stage: AnyStage, call: Call) -> Iterator[Session]:
    """Open device and data and join the other processes, once the run folder can be written.

    Args:
        recipe: Resolved settings.
        stage: What is to be made.
        call: Where to, and whether at all.

    Raises:
        ConfigError: If the call contradicts itself, settings differ from those of the run to
            continue, or the folder or the device cannot be had.
        DataError: If the folder cannot be written, or the data is missing or has changed.
    """
    out, resume = call.out, call.resume
    if resume is not None and (call.overwrite or out not in (None, resume)):
        raise ConfigError("--resume goes on in its own folder: leave --out and --overwrite out")
    if isinstance(recipe, Recipe) and resume is None and not call.dry_run:
        check_out(out, recipe.data)
    runtime = open_runtime(recipe.runtime)
    with process_group(runtime.device.type == "cuda"):
        if not call.dry_run:
            processes.on_first(partial(check_target, out, resume=resume, overwrite=call.overwrite))
        values = stage_values(recipe, stage)
        if resume is not None:
            # As the run has them: an older version wrote no keys that it did not know.
            run = open_unfinished(resume, stage)
            refuse_changes(resume, run_values(run, stage), values)
            values = run.written_recipe
        data = processes.ahead(partial(load_data, recipe)).to(runtime.device)
        session = Session(call=call, runtime=runtime, data=data, values=values)
        if resume is not None and (resume / "env.json").is_file():
            check_same(Run(resume), session.dataset, f"--resume {resume}")
        yield session


def load_data(recipe: Recipe | SegmentRecipe) -> Dataset | SegmentData:
    """Open the data of a recipe, on the host."""
    if isinstance(recipe, Recipe):
        return load_dataset(recipe.data)
    return load_segment_data(recipe.data, cache_dir=places.cache_dir())


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
            try:
                write_json(path, ended)
            except DataError as fault:  # what ended the run is the news
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
