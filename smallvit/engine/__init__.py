"""The loop that every training stage shares: device, optimizer, step, checkpoints, log."""
