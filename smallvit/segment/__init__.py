"""Segmentation: a head on a trained backbone that names the class of every pixel."""
