"""Run the tests of what is promised bit for bit with the processor held to other instruction sets.

``python tests/instruction_sets.py`` runs ``pytest -m "exact and not slow"`` once for each set that
this processor has and that the ordinary run of the tests does not use; what a promise rests on must
not be the brand. torch, oneDNN and MKL read the set from the environment when they are first used.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

# Newest first: what the flags of the processor must hold, and what holds the libraries to the set.
SETS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "AVX-512 without bfloat16 units": (
        "avx512_bf16",
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    ),
    "AVX-512 without AMX": (
        "amx_bf16",
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    ),
    "AVX2": (
        "avx512f",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
    ),
    "no AVX": (
        "sse4_1",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        },
    ),
}


def processor_flags() -> frozenset[str]:
    """Return what the processor says that it can do; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def main() -> int:
    """Run them all, one after the other; return 1 where a test fails in one."""
    flags, failed = processor_flags(), []
    for name, (flag, held) in SETS.items():
        if flag not in flags:
            print(f"{name}: not tried, this processor has no {flag}", flush=True)
            continue
        print(f"{name}:", flush=True)
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "exact and not slow", *sys.argv[1:]]
        if subprocess.run(command, env=os.environ | held, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"failed with: {', '.join(failed)}" if failed else "the same bits with each", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
