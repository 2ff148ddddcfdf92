"""Randomness as a function of (seed, purpose, epoch, sample index).

No generator is carried along: every draw is a hash of its key, so that a resumed run, another
batch size or another number of processes sees the same numbers, on the CPU and on a GPU alike.

Shapes in this file:
    B    samples
    n    draws a sample
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads consecutive counters
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as the signed one that torch holds."""
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Finalise 64-bit keys (splitmix64): every input bit changes half of the output bits.

    Source:
        Steele, Lea and Flood, 2014, Fast Splittable Pseudorandom Number Generators, OOPSLA;
        constants of Stafford's mix 13. Torch shifts are arithmetic, hence the masks.
    """
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ ((x >> shift) & (_MASK >> shift))) * _signed(multiplier)
    return x ^ ((x >> 31) & (_MASK >> 31))


def stream_key(seed: int, purpose: str) -> int:
    """Hash a seed and a purpose (``"order"``, ``"view/0/crop"``) to a signed 64-bit key."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _bits(
    key: int, epoch: Int[Tensor, " B"], index: Int[Tensor, " B"], num: int
) -> Int[Tensor, "B n"]:
    sample = _mix(_mix(epoch * _signed(_GOLDEN) + key) + index * _signed(_GOLDEN))
    counter = torch.arange(1, num + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(sample[:, None] + counter)


def uniform(
    seed: int, purpose: str, epoch: Int[Tensor, " B"], index: Int[Tensor, " B"], num: int
) -> Float[Tensor, "B n"]:
    """Draw ``num`` uniform numbers in [0, 1) for each sample.

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for; other purposes draw independent numbers.
        epoch: Pass over the data that each sample belongs to.
        index: Index of each sample in its data set.
        num: Draws a sample.

    Returns:
        Multiples of 2**-24 in [0, 1), float32, on the device of ``index``.
    """
    bits = _bits(stream_key(seed, purpose), epoch, index, num)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def permutation(
    seed: int, purpose: str, epoch: int, size: int, device: torch.device | None = None
) -> Int[Tensor, " size"]:
    """Return the order of ``size`` samples in one epoch."""
    index = torch.arange(size, device=device)
    bits = _bits(stream_key(seed, purpose), torch.full_like(index, epoch), index, 1)
    return torch.argsort(bits[:, 0], stable=True)


def scalar(seed: int, purpose: str, step: int, num: int) -> list[float]:
    """Draw ``num`` uniform numbers in [0, 1) for a whole step, on the host."""
    at = torch.tensor([step])
    return uniform(seed, purpose, torch.zeros_like(at), at, num)[0].tolist()


def step_seed(seed: int, step: int) -> int:
    """Return the seed of torch's own generators in one step (dropout, stochastic depth).

    It is the same in all processes that train together: each draws for the whole batch.

    Args:
        seed: Seed of the run.
        step: Step of the run.
    """
    return stream_key(seed, f"model/{step}") & (_MASK >> 1)
