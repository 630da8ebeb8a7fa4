"""What to learn: one short file per method, each of which fills in a table."""

from fastpeer.config import Config
from fastpeer.methods.natural import natural
from fastpeer.methods.peeraid import peeraid
from fastpeer.methods.table import Method


def build_method(config: Config) -> Method:
    """Return the table of the method that the settings name."""
    builders = {"peeraid": peeraid, "natural": natural}
    return builders[config.method](config)


__all__ = ["Method", "build_method"]
