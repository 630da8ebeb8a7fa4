"""A table that could not be carried out is refused when it is filled in, by what is wrong with it."""

from dataclasses import replace

import pytest

from fastpeer.methods import build_table, default_loss, method_names
from fastpeer.methods.table import (
    LABELS,
    Attack,
    Balance,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    Later,
    Method,
)
from fastpeer.methods.table.mistakes import mistakes

CLEAN, ADVERSARIAL = Forward("student", "clean"), Forward("student", "adversarial")
TEACHER = Forward("teacher", "clean")
ENTROPY = {"ce": CrossEntropy(CLEAN, 1.0)}
ATTACKS = {"adversarial": Attack("student", LABELS, "none")}
MISTAKES = {
    "no attack is called foo": {
        "forwards": (Forward("student", "foo"),),
        "terms": {"ce": CrossEntropy(Forward("student", "foo"), 1.0)},
    },
    "which forwards lacks": {
        "attacks": ATTACKS,
        "terms": {**ENTROPY, "kl": Divergence(CLEAN, ADVERSARIAL, 1.0)},
    },
    "neither clean images nor its own": {
        "attacks": {"adversarial": Attack("student", Forward("teacher", "other"), "none")},
    },
    "leave": {"forwards": (CLEAN, TEACHER)},
    "at clean images alone": {
        "attacks": ATTACKS,
        "forwards": (ADVERSARIAL, CLEAN),
        "terms": {**ENTROPY, "far": InputGradientDistance(ADVERSARIAL, "teacher", 1.0)},
    },
    "for a teacher, which is trained": {
        "terms": {**ENTROPY, "far": InputGradientDistance(CLEAN, "student", 1.0)},
    },
    "two divergences that weigh something": {
        "terms": {**ENTROPY, "kl": Divergence(CLEAN, TEACHER, 0.0)},
        "balance": Balance(("kl", "ce"), 0.1, 0.0),
    },
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_named(words):
    table = Method(**{"trained": ("student",), "forwards": (CLEAN,), "terms": ENTROPY, **MISTAKES[words]})
    assert words in next(mistakes(table))
    right = Method(trained=("student",), forwards=(CLEAN,), terms=ENTROPY)
    assert list(mistakes(replace(right, later=Later(1, table)))) == list(mistakes(table))


def test_a_table_without_a_mistake_is_none():
    assert not list(mistakes(Method(trained=("student",), forwards=(CLEAN,), terms=ENTROPY)))


@pytest.mark.parametrize("name", method_names())
def test_no_shipped_table_has_one(name):
    assert not list(mistakes(build_table(name, default_loss(name))))
