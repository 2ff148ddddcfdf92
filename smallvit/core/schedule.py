"""Schedules as closed forms of the fraction of training done."""

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine as ``progress`` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
