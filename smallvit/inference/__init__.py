"""Trained networks outside their run: export and loading."""
