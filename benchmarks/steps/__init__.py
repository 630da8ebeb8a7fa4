"""The training steps that are compared."""
