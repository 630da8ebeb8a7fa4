"""Signs that a network is not robust but hides its gradient (Athalye et al. 2018), from accuracies alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.hidden_gradients import SQUARE_GAIN
from fastpeer.evaluation.results import Result

ATTACKS = ("clean", "fgsm", "pgd10", "pgd1000", "unbounded100", "square")
"""What the checks need, by the names of `parse_attacks`."""
FAR = 5.0
"""Points that 1000 steps may find more than 10: three times the most that PeerAiD's Table 7 has."""


@dataclass(frozen=True)
class Check:
    """One of the four checks.

    Attributes:
        question: answered by no where nothing is wrong.
        suspicious: whether the answer is yes.
        names: the attacks that were compared.
    """

    question: str
    suspicious: bool
    names: tuple[str, ...]


def checks(results: Mapping[str, Result]) -> Iterator[Check]:
    """Yield the four checks of a network, given its results under `ATTACKS`, by their names."""
    correct = {name: result.correct for name, result in results.items()}
    # Less is chance: what pyautoattack allows Square to find.
    slack = SQUARE_GAIN * results["clean"].images
    gap = results["pgd10"].accuracy - results["pgd1000"].accuracy
    yield Check(
        "is one step stronger than ten?", correct["fgsm"] < correct["pgd10"] - slack, ("fgsm", "pgd10")
    )
    yield Check(
        "does anything withstand an unbounded attack?", correct["unbounded100"] > slack, ("unbounded100",)
    )
    yield Check(
        "is random search stronger than the gradient?",
        correct["square"] < correct["pgd1000"] - slack,
        ("square", "pgd1000"),
    )
    yield Check(f"do 1000 steps find {FAR:.0f} points more than 10?", gap > FAR, ("pgd10", "pgd1000"))


def verdict(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each check of a network, and what they mean; nothing, if an attack is missing."""
    found = {result.attack: result for result in results}
    if not found.keys() >= set(ATTACKS):
        return
    answers = list(checks(found))
    for check in answers:
        figures = ", ".join(f"{heading(name)} {found[name].accuracy:.2f}" for name in check.names)
        yield f"{check.question} {'YES' if check.suspicious else 'no'} ({figures})"
    signs = sum(check.suspicious for check in answers)
    if signs:
        yield f"{signs} of 4 checks say that its gradient is hidden: its robustness may be far less"
    else:
        yield "none of 4 checks says that its gradient is hidden"
