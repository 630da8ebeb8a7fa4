"""Signs that a network is not robust but hides its gradient (Athalye et al. 2018), from verdicts alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.hidden_gradients import SQUARE_GAIN
from fastpeer.evaluation.results import Result

GRADIENTS = ("pgd1000", "cw30")
"""By the gradient of both losses: PGD on the cross-entropy misses images that a margin finds, as Square's."""
ATTACKS = ("clean", "fgsm", "pgd10", *GRADIENTS, "unbounded100", "square")
"""What the checks need, by the names of `parse_attacks`."""
FAR = 5.0
"""Points that 1000 steps may find more than 10: three times the most that PeerAiD's Table 7 has."""


@dataclass(frozen=True)
class Check:
    """One of the four checks.

    Attributes:
        question: answered by no where nothing is wrong.
        suspicious: whether the answer is yes.
        figures: what was compared, for people.
    """

    question: str
    suspicious: bool
    figures: str


def checks(results: Mapping[str, Result]) -> Iterator[Check]:
    """Yield the four checks of a network, given its results under `ATTACKS`, by their names, just found."""
    correct = {name: result.correct for name, result in results.items()}
    # Less is chance: what pyautoattack allows Square to find, and one image more or fewer.
    rare = SQUARE_GAIN * results["clean"].images
    slack = max(1, rare)

    def figures(*names: str) -> str:
        return ", ".join(f"{heading(name)} {results[name].accuracy:.2f}" for name in names)

    yield Check(
        "is one step stronger than ten?",
        correct["fgsm"] < correct["pgd10"] - slack,
        figures("fgsm", "pgd10"),
    )
    yield Check(
        "does anything withstand an unbounded attack?",
        correct["unbounded100"] > rare,
        figures("unbounded100"),
    )
    alone = int((_withstanding(results, GRADIENTS) & ~_withstanding(results, ["square"])).sum())
    yield Check(
        "does random search find what the gradient does not?",
        alone > slack,
        f"{alone} of {results['clean'].images} images fall to Square alone",
    )
    gap = results["pgd10"].accuracy - results["pgd1000"].accuracy
    yield Check(f"do 1000 steps find {FAR:.0f} points more than 10?", gap > FAR, figures("pgd10", "pgd1000"))


def _withstanding(results: Mapping[str, Result], names: Sequence[str]) -> np.ndarray:
    """Return which images (N,) are classified correctly under all of these attacks."""
    found = [by_image.correct for name in names if (by_image := results[name].by_image) is not None]
    assert len(found) == len(names)
    together: np.ndarray = np.logical_and.reduce(found)
    return together


def verdict(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each check of a network, and what they mean; nothing, if an attack is missing."""
    found = {result.attack: result for result in results}
    if not found.keys() >= set(ATTACKS):
        return
    answers = list(checks(found))
    for check in answers:
        yield f"{check.question} {'YES' if check.suspicious else 'no'} ({check.figures})"
    signs = sum(check.suspicious for check in answers)
    if signs:
        yield f"{signs} of 4 checks say that its gradient is hidden: its robustness may be far less"
    else:
        yield "none of 4 checks says that its gradient is hidden"
