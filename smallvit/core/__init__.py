"""Errors, the objective seam, config primitives and randomness; imports nothing of smallvit."""
