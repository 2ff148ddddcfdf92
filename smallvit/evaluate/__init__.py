"""Scores of a trained network, each a function from model and data to named numbers."""
