"""A run: epochs of steps, averaging, selection, checkpoints and a log."""
