"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 12
"""Number of names that fit into an error's line."""


def similar(word: str, valid: Iterable[str], most: int = 3, likeness: float = 0.5) -> list[str]:
    """Return up to `most` valid words that may have been meant, the most alike first.

    These are the words of the fewest edits, where a slip or two of the hand explain `word`; else those that
    it begins, or whose last part behind a dot it is; else those whose likeness (0 to 1) suffices.
    """
    words = list(dict.fromkeys(valid))
    stem = word.lstrip("-")
    # Fewer edits than letters: any letter is one edit from any other.
    slips = min(max(1, len(stem) // 4), len(stem) - 1)
    # Where lengths differ by more, so do the edits; to count those of thousands of letters takes seconds.
    near = [other for other in words if abs(len(stem) - len(other.lstrip("-"))) <= slips]
    distances = {other: edit_distance(stem, other.lstrip("-")) for other in near}
    fewest = min(distances.values(), default=slips + 1)
    if fewest <= slips:
        return [other for other in near if distances[other] == fewest][:most]
    begun = [other for other in words if other.startswith(word) or other.endswith(f".{stem}")] if stem else []
    return begun[:most] or difflib.get_close_matches(word, words, n=most, cutoff=likeness)


def edit_distance(word: str, other: str) -> int:
    """Return how many letters must be inserted, dropped, replaced or swapped with the next, to get `other`.

    Optimal string alignment: no letter is edited twice.
    """
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        before, above, row = above, row, [i]
        for j, wanted in enumerate(other, 1):
            steps = [above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted)]
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == wanted:
                steps.append(before[j - 2] + 1)
            row.append(min(steps))
    return row[-1]


def did_you_mean(word: str, valid: Iterable[str], otherwise: str = "") -> str:
    """Suggest the valid words like `word`; if none is, list all, or where they are many say `otherwise`."""
    valid = list(dict.fromkeys(valid))
    suggested = similar(word, valid)
    if not suggested and len(valid) > MAX_LISTED:
        return otherwise
    listed = f"{'one of ' if len(suggested or valid) > 1 else ''}{', '.join(suggested or valid)}"
    return f"did you mean {listed}?" if suggested else f"must be {listed}"
