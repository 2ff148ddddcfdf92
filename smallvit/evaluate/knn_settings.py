"""The vote of neighbours by default; this file imports no torch, so that help is quick."""

NUM_NEIGHBOURS = 20


TEMPERATURE = 0.07
