"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 12
"""Number of names that fit into an error's line."""


def similar(word: str, valid: Iterable[str], most: int = 3, likeness: float = 0.5) -> list[str]:
    """Return up to `most` valid words whose likeness (0 to 1) to `word` suffices, the most alike first."""
    return difflib.get_close_matches(word, list(dict.fromkeys(valid)), n=most, cutoff=likeness)


def did_you_mean(word: str, valid: Iterable[str], otherwise: str = "") -> str:
    """Suggest the valid words like `word`; if none is, all of them, or where they are many `otherwise`."""
    valid = list(dict.fromkeys(valid))
    suggested = similar(word, valid) or valid
    if len(suggested) > MAX_LISTED:
        return otherwise
    return f"did you mean {'one of ' if len(suggested) > 1 else ''}{', '.join(suggested)}?"
