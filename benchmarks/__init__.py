"""Measurements: how fast (speed), how right and how robust (quality), all of it on a GPU (suite)."""
