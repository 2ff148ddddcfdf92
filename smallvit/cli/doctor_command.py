"""``smallvit doctor``."""

import shutil

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
        fault = places.dead_link(folder)  # first: a link to itself resolves to nothing
        if not fault and (why := places.write_fault(folder.resolve())):
            fault = f"cannot be written ({why})"
        if fault:
            faults.append(f"{folder}: {fault}")
            table.add_row(name, f"{folder.absolute()}: {fault}")
        else:
            free = shutil.disk_usage(places.nearest_folder(folder.resolve())).free
            table.add_row(name, f"{folder.resolve()}, {free / 2**30:.1f} GiB free")
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
