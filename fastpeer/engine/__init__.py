"""How training runs: one step, epochs of them, averaging, checkpoints."""
