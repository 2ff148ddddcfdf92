"""The folder of one run: creating and holding it, its JSON files, and finding runs by scanning."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from smallvit.core import places
from smallvit.core.errors import ConfigError, DataError, explained
from smallvit.core.whole_file import write_text

LOCK = "run.lock"
PACKAGES = ("smallvit", "torch", "torchvision", "timm", "lightly", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Run:
    """One run on disk.

    Attributes:
        path: Its folder.
    """

    path: Path

    def __repr__(self) -> str:
        """Say what it is, how it ended and where."""
        try:
            result = self.result
        except DataError:
            return f"Run({str(self.path)!r}: nothing to read there)"
        what = f"{result.get('stage')} of {result.get('dataset')}, {result.get('model')}"
        metrics = result.get("metrics") or {}
        scores = [f"{k} {v:.2%}" for k, v in metrics.items() if k in ("val/top1", "val/knn")]
        return f"Run({str(self.path)!r}: {', '.join([what, str(result.get('status')), *scores])})"

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, with what its version did without naming it."""
        return name_version(self.written_recipe)

    @property
    def written_recipe(self) -> dict[str, Any]:
        """The resolved recipe as it was written."""
        return self._read("recipe.yaml")

    @property
    def result(self) -> dict[str, Any]:
        """Contents of result.json."""
        return self._read("result.json")

    @property
    def env(self) -> dict[str, Any]:
        """Contents of env.json."""
        return self._read("env.json")

    @property
    def completed(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "result.json").exists() and self.result.get("status") == "completed"

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name

        def explain(error: Exception) -> str:
            return f"{path} is missing or broken ({type(error).__name__}): repeat the run"

        with explained(explain, Exception):  # PyYAML raises nearly anything
            text = path.read_text(encoding="utf-8")
            value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        if not isinstance(value, dict):
            raise DataError(f"{path} is broken, it holds no mapping: repeat the run")
        return value


def name_version(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a run's recipe with the version of its cut, which the first one did not name."""
    data = recipe.get("data", {})
    return {**recipe, "data": {"split_version": 1, **data}} if isinstance(data, dict) else recipe


def open_classifier(path: Path, option: str) -> "Run":
    """Open a finished run that can classify; ``option`` is what named it.

    Raises:
        DataError: If it did not finish.
        ConfigError: If there is none, or it is of a stage without a classifier.
    """
    run = open_run(path, option=option)
    if run.result["stage"] not in ("teacher", "finetune"):
        raise ConfigError(
            f"{option} {path} is a {run.result['stage']} run and cannot classify: name a teacher "
            "or fine-tuned run"
        )
    return run


def open_run(path: Path, *, option: str = "") -> Run:
    """Open a finished run.

    Args:
        path: Its folder.
        option: What named it, for messages.

    Raises:
        DataError: If it did not finish, or its result.json is broken.
        ConfigError: If there is none.
    """
    named = f"{option} {path}".strip()
    if not (path / "result.json").is_file():
        raise ConfigError(f"{named} {what_is_at(path)}")
    run = Run(path)
    result = run.result
    if not {"stage", "status"} <= result.keys():
        raise DataError(f"{path}/result.json is broken: repeat the run")
    if result["status"] != "completed":
        raise DataError(f"{named} {_why_unfinished(path, result)}")
    return run


def what_is_at(path: Path) -> str:
    """Say what a path is that is no run, and what to name instead."""
    run = path.parent.parent
    if path.parent.name in ("checkpoints", "export") and (run / "result.json").is_file():
        best = ", whose export holds its best weights" if path.parent.name == "checkpoints" else ""
        return f"is a part of a run: name the run, {run}{best}"
    if (path.parent / "result.json").is_file():
        return f"is a part of a run: name the run, {path.parent}"
    if dead := places.dead_link(path):
        return dead
    if path.is_file():
        return (
            "is a file, no run and no export: `smallvit convert` makes an export of the papers' "
            "weights, and timm's save_for_hf one of any network of timm's"
        )
    if not path.exists():
        return "is not there: 'smallvit runs ls' shows the runs that are"
    if (path / "model.safetensors").is_file():
        return "has model.safetensors but no config.json beside it, which timm needs: put it back"
    found = [run for run in find_runs(path) if run.completed and run.result["stage"] != "label"]
    if found:
        return f"holds runs and is none: name one, such as the newest, {found[-1].path}"
    return "is no run: 'smallvit runs ls' shows those that are"


def _why_unfinished(path: Path, result: dict[str, Any]) -> str:
    """Say how far a run came, and what would finish it."""
    remedy = f"finish it with smallvit {result['stage']} --resume {path}"
    if result["status"] == "running":
        if _is_held(path):
            return "is at work: wait for its end"
        return f"was cut short: {remedy}"
    if result["status"] == "failed":
        return f"failed ({result.get('error', 'see its train.log')}): mend that and {remedy}"
    return f"is {result['status']}: {remedy}"


def _is_held(path: Path) -> bool:
    if not (path / LOCK).is_file():
        return False
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def find_runs(root: Path) -> Iterator[Run]:
    """Yield every run below ``root``, oldest first; a broken result.json is passed over.

    Raises:
        DataError: If the folder is a link to nothing.
    """
    if dead := places.dead_link(root):
        raise DataError(f"{root} {dead}, or set SMALLVIT_RUNS_DIR")
    found = []
    for path in root.rglob("result.json"):
        try:
            result = Run(path.parent)._read(path.name)
        except DataError:
            continue
        if {"started", "stage", "status"} <= result.keys():
            found.append((_moment(str(result["started"])), path.parent))
    for _, folder in sorted(found):
        yield Run(folder)


def _moment(started: str) -> float:
    """Return when a run was started, in seconds; text would sort by the clock on the wall."""
    try:
        return datetime.fromisoformat(started).timestamp()
    except (ValueError, OverflowError):
        return 0.0  # older than all whose start is known


def new_folder(root: Path, dataset: str, label: str) -> Path:
    """Name a fresh run folder ``root/dataset/YYYYMMDD-HHMMSS-label``."""
    stem = root / dataset / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def check_target(out: Path | None, *, resume: Path | None, overwrite: bool) -> None:
    """Refuse, before any work, a run folder that could not be written after it.

    Args:
        out: Folder of the run to come; ``None`` is a new one under the runs folder.
        resume: Folder of the run to continue, in place of ``out``.
        overwrite: Replace an earlier run in ``out``.

    Raises:
        ConfigError: If it is taken, or another process holds it.
        DataError: If it cannot be written.
    """
    if resume is not None:
        with hold_folder(resume):
            return
    if out is not None:
        _refuse_taken(out, overwrite=overwrite)
    path = out or places.runs_dir()
    if dead := places.dead_link(path):
        raise DataError(f"{path} {dead}, or choose another --out or SMALLVIT_RUNS_DIR")
    if fault := places.write_fault(path):
        raise DataError(f"cannot write {path} ({fault}): choose another --out or SMALLVIT_RUNS_DIR")


def create_folder(path: Path, *, overwrite: bool) -> None:
    """Create a run folder.

    Raises:
        ConfigError: If it exists with something in it and may not be overwritten, holds something
            that is no run, or one that is at work.
        DataError: If it cannot be written.
    """
    with explained(lambda error: f"cannot create {path}: {error.strerror}"):
        if _refuse_taken(path, overwrite=overwrite):
            with hold_folder(path):
                shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        # Of two runs that find the folder empty at the same time, one.
        taken = f"{path} was just taken by another run: choose another --out"
        with explained(lambda _: taken, FileExistsError, into=ConfigError):
            (path / LOCK).touch(exist_ok=False)


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Hold a run folder for this process, and clear what a killed one left half-written in it.

    The system frees the lock of a process that is gone, however it ended.

    Raises:
        ConfigError: If another process holds it; the message names that one.
        DataError: If it cannot be written.
    """
    file = path / LOCK
    owner = ""
    with suppress(OSError):
        owner = file.read_text()  # first: some versions of filelock empty the file in trying
    used = f"{path} is in use by {owner or 'another process'}"
    wait = f"{used}: wait for its end; a new run takes another --out"

    def explain(error: OSError) -> str:
        return f"cannot write {path} ({error.strerror}): make it writable, or free some room"

    lock = FileLock(file)
    try:
        with explained(explain), explained(lambda _: wait, Timeout, into=ConfigError):
            lock.acquire(timeout=0)
            file.write_text(f"process {os.getpid()} on {platform.node()}")
            for partial_file in (*path.glob("*.part"), *path.glob("checkpoints/*.part")):
                partial_file.unlink()
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            lock.release()


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Replace a recipe file whole.

    Raises:
        DataError: If it cannot be written; what was at ``path`` is as it was.
    """
    write_text(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def _refuse_taken(path: Path, *, overwrite: bool) -> bool:
    """Tell whether an earlier run is there to be replaced; refuse all else that is there.

    Raises:
        ConfigError: If there is something that may not be replaced, or a run at work.
    """
    if path.is_file():
        raise ConfigError(f"{path} is a file, and a run needs a folder: choose another --out")
    if not path.is_dir() or not any(path.iterdir()):
        return False
    is_run = (path / "result.json").is_file()
    if not is_run:
        left = "so --overwrite leaves it alone" if overwrite else "and is not empty"
        raise ConfigError(f"{path} is no run, {left}: choose another --out, or empty it yourself")
    if not overwrite:
        go_on = ""
        with suppress(DataError):  # a broken one is not gone on with
            go_on = "" if Run(path).completed else f"continue it with --resume {path}, "
        raise ConfigError(
            f"{path} holds a run: {go_on}replace it with --overwrite, or choose another --out"
        )
    with hold_folder(path):
        return True


def environment(argv: Sequence[str]) -> dict[str, Any]:
    """Describe what a run was made with: versions, machine, commit, command."""
    commit, dirty = _commit()
    return {
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "machine": machine(),
        "commit": commit,
        "dirty": dirty,
        "argv": list(argv),
    }


def machine() -> str:
    """Describe the processor in a few words, and the cores that this process may keep busy."""
    from joblib import cpu_count  # late: help is to be quick

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {cpu_count()} cores"


@cache  # what is imported stays as it is
def _versions() -> dict[str, str]:
    present = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in present}


@cache
def _commit() -> tuple[str | None, bool]:
    """Return the commit of the source tree that runs, and whether it differs from it."""
    git, here = shutil.which("git"), Path(__file__)
    if git is None:
        return None, False
    ask = partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=False)
    tracked = ask([git, "ls-files", "--error-unmatch", here.name])
    named = ask([git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    if tracked.returncode or named.returncode:
        return None, False
    commit, _, dirty = named.stdout.strip().partition("-")
    return commit, bool(dirty)
