"""`python -m fastpeer` is the `fastpeer` command."""

from fastpeer.cli import run

run()
