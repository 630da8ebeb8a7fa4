"""Writes FFCV files in a process of its own: `launch.py` starts it, `process.py` is what it does."""
