"""The nearest name to one that is not known."""

import difflib
from collections.abc import Iterable

FEW = 12
"""So many names fit into an error's line."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the valid words most like `word`; where none is like it, all, if they are few."""
    valid = list(dict.fromkeys(valid))
    named = difflib.get_close_matches(word, valid, n=3, cutoff=0.5) or valid
    if len(named) > FEW:
        named = difflib.get_close_matches(word, valid, n=3, cutoff=0.0)
    return f"one of {', '.join(named)}" if len(named) > 1 else named[0]
