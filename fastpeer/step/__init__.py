"""One training step, from a batch to the updated weights."""
