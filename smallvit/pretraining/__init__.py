"""Stage 1: self-supervised pretraining on the target images, one method a file."""
