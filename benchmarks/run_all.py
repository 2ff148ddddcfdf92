"""Run every benchmark, each in a process of its own, and print one table of all claims.

A script fails if its process does or if its last line is no claim: it is named below the table and
the exit code is 1. A script that finds nothing to compare on this machine says so. The claims are
written as JSON too, under the folder of runs unless a file is named.

    python benchmarks/run_all.py [--quick] [--only NAME...] [--out FILE]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallvit.core import places
from smallvit.core.run_folder import environment, write_json

HERE = Path(__file__).parent
SCRIPTS = (
    "startup",
    "packing",
    "views",
    "pretrain",
    "utilisation",
    "finetune",
    "token_labeling",
    "labeling",
    "evaluation",
    "corruptions",
    "attention",
    "models",
    "processes",
    "scaling",
    "other_trainers",
)
KEYS = {"claim", "ours", "reference", "ratio", "unit", "machine", "commit"}
Claim = Mapping[str, Any]


class FailedScriptError(Exception):
    """A script that ended with an error or said no claim; the message is one line."""


def read_claims(text: str) -> list[Claim]:
    """Read the claims in the last line of what a script printed.

    Raises:
        FailedScriptError: If that line is no claim or list of claims.
    """
    last = text.strip().rpartition("\n")[2]
    try:
        value = json.loads(last)
    except ValueError as error:
        raise FailedScriptError(f"its last line is no JSON: {last[:80]!r}") from error
    claims = value if isinstance(value, list) else [value]
    for claim in claims:
        missing = KEYS - claim.keys() if isinstance(claim, dict) else KEYS
        if missing:
            raise FailedScriptError(f"a claim lacks {', '.join(sorted(missing))}")
    return claims


def run_script(name: str, arguments: Sequence[str]) -> list[Claim]:
    """Run one script, show what it says, and return its claims.

    Raises:
        FailedScriptError: If it ends with an error, or its last line is no claim.
    """
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not line.startswith(("{", "[")):
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise FailedScriptError(f"exit code {process.returncode}")
    return read_claims("".join(lines))


def write_table(claims: Sequence[Claim]) -> str:
    """Set claims as a Markdown table, machines and commits below it."""
    rows = [["Claim", "Ours", "Reference", "Ratio", "Unit"]]
    rows += [
        [
            claim["claim"],
            *(_number(claim[key]) for key in ("ours", "reference", "ratio")),
            claim["unit"],
        ]
        for claim in claims
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        "| " + " | ".join(_pad(row[i], width, i) for i, width in enumerate(widths)) + " |"
        for row in rows
    ]
    rules = ["-" * (width - 1) + (":" if 0 < i < 4 else "-") for i, width in enumerate(widths)]
    machines = sorted({claim["machine"] for claim in claims})
    commits = sorted({str(claim["commit"]) for claim in claims})
    about = f"{' and '.join(machines)}; commit {' and '.join(commits)}"
    return "\n".join([aligned[0], "| " + " | ".join(rules) + " |", *aligned[1:], "", about])


def _number(value: float) -> str:
    """Write a figure with four significant digits, large ones whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _pad(text: str, width: int, column: int) -> str:
    return text.rjust(width) if 0 < column < 4 else text.ljust(width)


def run_scripts(
    names: Sequence[str], run: Callable[[str], list[Claim]]
) -> tuple[list[Claim], dict[str, str]]:
    """Run scripts one after the other; one that fails does not stop the others.

    Returns:
        The claims of all, each with its ``script`` and their ``wall_s``, and what went wrong by
        script.
    """
    claims: list[Claim] = []
    failures: dict[str, str] = {}
    for name in names:
        print(f"{name}:", flush=True)
        start = time.perf_counter()
        try:
            found = run(name)
        except FailedScriptError as error:
            failures[name] = str(error)
            print(f"  failed: {error}", flush=True)
            continue
        seconds = round(time.perf_counter() - start, 1)
        claims += [{**claim, "script": name, "wall_s": seconds} for claim in found]
        print(f"  {seconds} s{'' if found else ', nothing to compare here'}", flush=True)
    return claims, failures


def main() -> None:
    """Run the scripts, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the quick way of every script")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, help="JSON file of all claims")
    given = parser.parse_args()
    options = ["--quick"] if given.quick else []
    claims, failures = run_scripts(given.only or SCRIPTS, lambda name: run_script(name, options))
    out = given.out or places.runs_dir() / "benchmarks.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    env = environment([])
    kept = ("machine", "commit", "dirty", "versions")
    about = {key: env[key] for key in kept}
    write_json(out, {**about, "quick": given.quick, "claims": claims, "failures": failures})
    if claims:
        print(f"\n{write_table(claims)}{', with changes' if env['dirty'] else ''}")
    print(f"written to {out}")
    for name, reason in failures.items():
        print(f"failed: benchmarks/{name}.py: {reason}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
