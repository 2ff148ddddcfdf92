"""How many processor cores this process may use."""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the cores that this process may keep busy, at least 1.

    Not those of the machine: a job scheduler, ``taskset`` or a container may allow fewer.
    """
    if sys.platform == "linux":
        return max(1, min(len(os.sched_getaffinity(0)), _quota()))
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1


def _quota() -> int:
    """Return the cores' worth of time that a container is given, rounded up."""
    with suppress(OSError, ValueError):  # version 2; "max" where there is no limit
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    with suppress(OSError, ValueError):  # version 1; -1 where there is no limit
        quota, period = (
            int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        if quota > 0:
            return math.ceil(quota / period)
    return sys.maxsize
