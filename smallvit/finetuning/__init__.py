"""Stage 2: supervised training from labels and, patch by patch, from score maps."""
