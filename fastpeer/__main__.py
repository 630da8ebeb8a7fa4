"""`python -m fastpeer` is the `fastpeer` command."""

from fastpeer.cli.main import run

run()
