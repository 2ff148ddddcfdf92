"""The folder of one run: creating it, its JSON files, and finding runs by scanning."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smallvit.core.errors import ConfigError, DataError

PACKAGES = ("smallvit", "torch", "torchvision", "timm", "lightly", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Run:
    """One run on disk.

    Attributes:
        path: Its folder.
    """

    path: Path

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
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
        try:
            text = path.read_text()
            value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(
                f"{path} is missing or broken ({type(error).__name__}): repeat the run"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{path} is broken, it holds no mapping: repeat the run")
        return value


def open_classifier(path: Path, option: str) -> "Run":
    """Open a finished run that can classify; ``option`` is what named it.

    Raises:
        DataError: If there is none, or it did not finish.
        ConfigError: If it is of a stage without a classifier.
    """
    run = open_run(path)
    if run.result["stage"] not in ("teacher", "finetune"):
        raise ConfigError(f"{option} {path} is a {run.result['stage']} run and cannot classify")
    return run


def open_run(path: Path, *, stage: str | None = None) -> Run:
    """Open a finished run.

    Args:
        path: Its folder.
        stage: Stage that it must be of, or ``None`` for any.

    Raises:
        DataError: If there is none, or it did not finish.
        ConfigError: If it is of another stage.
    """
    if not (path / "result.json").is_file():
        raise DataError(f"no run at {path}: 'smallvit runs ls' shows those there are")
    run = Run(path)
    result = run.result
    if not {"stage", "status"} <= result.keys():
        raise DataError(f"{path}/result.json is broken: repeat the run")
    if stage is not None and result["stage"] != stage:
        raise ConfigError(f"{path} is a {result['stage']} run, a {stage} run is needed")
    if result["status"] != "completed":
        raise DataError(f"{path} is {result['status']}: finish it with --resume {path}")
    return run


def find_runs(root: Path) -> Iterator[Run]:
    """Yield every run below ``root``, oldest first; a broken result.json is passed over."""
    found = []
    for path in root.rglob("result.json"):
        try:
            result = Run(path.parent).result
        except DataError:
            continue
        if {"started", "stage", "status"} <= result.keys():
            found.append((str(result["started"]), path.parent))
    for _, folder in sorted(found):
        yield Run(folder)


def new_folder(root: Path, dataset: str, label: str) -> Path:
    """Name a fresh run folder ``root/dataset/YYYYMMDD-HHMMSS-label``."""
    stem = root / dataset / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def create_folder(path: Path, *, overwrite: bool) -> None:
    """Create a run folder.

    Raises:
        ConfigError: If it exists with something in it and may not be overwritten, or holds
            something that is no run.
        DataError: If it cannot be written.
    """
    try:
        if path.exists() and any(path.iterdir()):
            if not overwrite:
                raise ConfigError(
                    f"{path} exists: continue it with --resume {path}, replace it with "
                    "--overwrite, or choose another --out"
                )
            if not (path / "result.json").is_file():
                raise ConfigError(f"{path} is no run, so --overwrite leaves it alone")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create {path}: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Replace a recipe file whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    partial.replace(path)


def environment(argv: Sequence[str]) -> dict[str, Any]:
    """Describe what a run was made with: versions, machine, commit, command."""
    commit, dirty = _commit()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _installed()},
        "machine": machine(),
        "commit": commit,
        "dirty": dirty,
        "argv": list(argv),
    }


def machine() -> str:
    """Describe the processor in a few words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{name}, {cores} cores"


def _installed() -> list[str]:
    present = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    return [name for name in PACKAGES if name in present]


def _commit() -> tuple[str | None, bool]:
    """Return the commit of the source tree that runs, and whether it differs from it."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
        )
        if tracked.returncode:
            return None, False
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None, False
    return head.stdout.decode().strip(), bool(status.stdout.strip())
