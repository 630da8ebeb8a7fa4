"""The nearest name to one that is not known."""

import difflib
from collections.abc import Iterable

FEW = 12
"""So many names fit into an error's line."""


def similar(word: str, valid: Iterable[str], most: int = 3, likeness: float = 0.5) -> list[str]:
    """Return the valid words that are like `word`, the most alike first; likeness is from 0 to 1."""
    return difflib.get_close_matches(word, list(dict.fromkeys(valid)), n=most, cutoff=likeness)


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the valid words most like `word`; where none is like it, all, if they are few."""
    valid = list(dict.fromkeys(valid))
    named = similar(word, valid) or valid
    if len(named) > FEW:
        named = similar(word, valid, likeness=0.0)
    return f"one of {', '.join(named)}" if len(named) > 1 else named[0]
