"""How much memory there is, and how much this process takes; ``None`` where the system is silent.

Linux says so below /proc and, for containers and batch jobs, in the limits of control groups. On
other systems nothing is known without another library, and nothing is said.
"""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
GROUPS = Path("/proc/self/cgroup")
GROUP_ROOT = Path("/sys/fs/cgroup")
# Limit and use of a control group, in its two versions; caches that can be dropped are no use.
FILES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
KEPT_BYTES = 32 << 20  # of a buffer, the largest that glibc takes
MOST_KEPT_BYTES = 1 << 30  # of all that are kept


def free_bytes() -> int | None:
    """Return the memory that this process can still take without swapping or being killed."""
    available = _read_kb(MEMINFO, "MemAvailable")
    if available is None:
        return None
    return max(0, min([available, *_free_of_groups()]))


def resident_bytes() -> int | None:
    """Return the memory that this process has."""
    return _read_kb(STATUS, "VmRSS")


def peak_bytes() -> int | None:
    """Return the most memory that this process has had, since ``start_peak`` if that worked."""
    return _read_kb(STATUS, "VmHWM")


def start_peak() -> bool:
    """Give freed memory back to the system, and let ``peak_bytes`` start from what is left.

    Returns:
        Whether it does; where that is forbidden, the peak is that of the whole process.
    """
    _call_libc(("malloc_trim", 0))  # of another C library, what it keeps counts as in use
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def keep_freed_memory(up_to: int = KEPT_BYTES) -> None:
    """Let glibc keep freed buffers up to 1 GiB for the next step.

    By default it returns those of a few MB to the system, which clears them again page by page at
    the next step: half of the time of stage 1's views on two cores. Other C libraries are left
    as they are.

    Args:
        up_to: Bytes of the largest buffer that is kept.
    """
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
    _call_libc(("mallopt", -3, up_to), ("mallopt", -1, MOST_KEPT_BYTES))


def format_bytes(count: float) -> str:
    """Write a number of bytes as a person reads it: ``3.9 GB``, ``420 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.0f} MB"


def _call_libc(*calls: tuple[Any, ...]) -> None:
    """Call functions of glibc; where there is another C library, do nothing."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for name, *arguments in calls:
            getattr(libc, name)(*arguments)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read_numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file that has a name and a number a line."""
    rows = (line.replace(":", " ").split() for line in _read_lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _read_kb(path: Path, name: str) -> int | None:
    value = _read_numbers(path).get(name)
    return None if value is None else 1024 * value


def _free_of_groups() -> list[int]:
    """Return what is left of the limit of each control group that this process is in."""
    found = []
    for line in _read_lines(GROUPS):
        _, controllers, inside = (*line.split(":", 2), "", "")[:3]
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in FILES:
            continue
        root = GROUP_ROOT / kind
        folder = root / inside.lstrip("/")
        # A container may see itself as the root, whatever its folder is called outside.
        folder = folder if folder.is_dir() else root
        while folder.is_relative_to(root):
            limit, used = ("".join(_read_lines(folder / name)) for name in FILES[kind])
            if limit.isdecimal() and used.isdecimal():  # "max" is no limit
                cached = _read_numbers(folder / "memory.stat")
                cached = cached.get("total_inactive_file", cached.get("inactive_file", 0))
                found.append(int(limit) - max(0, int(used) - cached))
            folder = folder.parent
    return found
