"""Settings of evaluation; this file imports no torch, so that help is quick."""

from typing import Literal

NUM_NEIGHBORS = 20  # that vote on an image
TEMPERATURE = 0.07  # of their votes
Readout = Literal["cls", "cls+max", "mean"]
