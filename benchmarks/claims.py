"""What the benchmarks have in common: timing ways in turn, and the line that states a claim."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smallvit.core.run_folder import environment


def alternate(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call all ways in turn, once to warm up and then ``rounds`` times, every other time backwards.

    Args:
        ways: Each returns the seconds, or whatever else, of one round.
        rounds: Rounds that count.

    Returns:
        What each way returned in each round that counts.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in reversed([*ways]) if number % 2 else ways:
            value = ways[name]()
            if number:
                found[name].append(value)
    return found


def state(
    claim: str, ours: float, reference: float, unit: str, *, ratio: float | None = None
) -> dict[str, Any]:
    """Write a claim as every script prints it, with the machine and the commit.

    Args:
        claim: What is compared, in words.
        ours: Our figure.
        reference: Its reference.
        unit: Of both.
        ratio: Of ours over the reference where it is not the quotient of the two figures.
    """
    env = environment([])
    return {
        "claim": claim,
        "ours": _round(ours),
        "reference": _round(reference),
        "ratio": _round(ours / reference if ratio is None else ratio),
        "unit": unit,
        "machine": env["machine"],
        "commit": env["commit"],
    }


def print_claims(claims: Sequence[Mapping[str, Any]]) -> None:
    """Print claims as the last line of a script."""
    print(json.dumps(claims), flush=True)


def _round(value: float) -> float:
    """Keep four digits before the point whole, and three significant ones after it."""
    return round(value, 1) if abs(value) >= 100 else float(f"{value:.4g}")
