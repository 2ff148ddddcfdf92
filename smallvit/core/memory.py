"""How much memory there is, and how much this process takes; ``None`` where the system is silent.

Linux says so below /proc and, for containers and batch jobs, in the limits of control groups. On
other systems nothing is known without another library, and nothing is said.
"""

import ctypes
from contextlib import suppress
from pathlib import Path

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
    with suppress(OSError, AttributeError):  # another C library: what it keeps counts as in use
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def format_bytes(count: float) -> str:
    """Write a number of bytes as a person reads it: ``3.9 GB``, ``420 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.0f} MB"


def _read_kb(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        words = value.split()
        if key == name and words and words[0].isdecimal():
            return int(words[0]) * 1024
    return None


def _free_of_groups() -> list[int]:
    """Return what is left of the limit of each control group that this process is in."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in FILES:
            continue
        root = GROUP_ROOT / kind
        folder = root / place.lstrip("/")
        # A container may see itself as the root, whatever its place is called outside.
        folder = folder if folder.is_dir() else root
        while folder.is_relative_to(root):
            limit, used = (_read_int(folder / name) for name in FILES[kind])
            if limit is not None and used is not None:
                cached = _read_stat(folder / "memory.stat")
                found.append(limit - max(0, used - cached))
            folder = folder.parent
    return found


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _read_stat(path: Path) -> int:
    """Return the bytes of files in memory that a control group can drop."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    values = {key: int(value) for key, value in (pair for pair in words if len(pair) == 2)}
    return values.get("total_inactive_file", values.get("inactive_file", 0))
