"""``smallvit doctor``."""

import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from smallvit.core import places
from smallvit.core.errors import DataError
from smallvit.core.run_folder import environment
from smallvit.data.files.fetch import is_present
from smallvit.data.files.registry import DATASETS


def doctor_command() -> None:
    """Show versions, devices, precision and folders, and what is missing."""
    import torch

    env = environment([])
    table = Table("what", show_header=True)
    table.add_column("here", overflow="fold")  # paths are copied
    table.add_row("python", env["python"])
    for name, version in env["versions"].items():
        table.add_row(name, version)
    table.add_row("machine", env["machine"])
    table.add_row("threads", str(torch.get_num_threads()))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: runs on the CPU"
    table.add_row("CUDA device", cuda)
    table.add_row("bf16", _bf16())
    folders = {
        "cache (SMALLVIT_CACHE_DIR)": places.cache_dir(),
        "data (SMALLVIT_DATA_DIR)": places.data_dir(),
        "runs (SMALLVIT_RUNS_DIR)": places.runs_dir(),
    }
    faults = []
    for name, folder in folders.items():
        fault = _write_fault(folder)
        room = "" if fault else f", {_free_gib(folder):.1f} GiB free"
        place = folder.absolute() if fault else folder.resolve()
        table.add_row(name, f"{place}{room}{fault and f': {fault}'}")
        faults += [f"{folder}: {fault}"] if fault else []
    table.add_row("offline (SMALLVIT_OFFLINE)", "yes" if places.offline() else "no")
    here = [name for name, spec in DATASETS.items() if is_present(spec, places.data_dir())]
    table.add_row("data sets here", ", ".join(here))
    Console().print(table)
    if faults:
        raise DataError(
            f"{'; '.join(faults)}: make it writable or set the variable to another folder"
        )


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        return "on the GPU" if torch.cuda.is_bf16_supported() else "not on this GPU"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "fast on this CPU: try --precision bf16" if fast else "slow on this CPU: use fp32"


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _write_fault(folder: Path) -> str:
    if dead := places.dead_link(folder):
        return dead
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _free_gib(folder: Path) -> float:
    return shutil.disk_usage(_existing(folder)).free / 2**30
