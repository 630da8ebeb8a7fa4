"""A table that could not be carried out is refused when it is filled in, by what is wrong with it."""

from dataclasses import replace

import pytest

from fastpeer.methods import build_table, default_loss, method_names
from fastpeer.methods.check import mistakes
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

CLEAN, ADVERSARIAL = Forward("student", "clean"), Forward("student", "adversarial")
TEACHER, PEER = Forward("teacher", "clean"), Forward("peer", "clean")
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
    "divergences that weigh something": {
        "terms": {**ENTROPY, "kl": Divergence(CLEAN, TEACHER, 0.0)},
        "balance": Balance(("kl", "ce"), 0.1, 0.0),
    },
    "of the whole training": {
        "terms": {**ENTROPY, "kl": Divergence(CLEAN, TEACHER, 1.0)},
        "balance": Balance(("kl", "kl"), 0.1, 0.0),
    },
    "trained must be the student": {
        "trained": ("peer",),
        "forwards": (PEER,),
        "terms": {"ce": CrossEntropy(PEER, 1.0)},
    },
    "neither trained nor a teacher": {"terms": {**ENTROPY, "kl": Divergence(CLEAN, PEER, 1.0)}},
    "forwards has": {"forwards": (CLEAN, Forward("student", "foo"))},
    "call the attack something else": {"attacks": {"clean": Attack("student", LABELS, "none")}},
    "a Forward, got 'clean'": {"attacks": {"adversarial": Attack("student", "clean", "none")}},
    "its own prediction on the same images": {
        "attacks": {"adversarial": Attack("student", ADVERSARIAL, "none")}
    },
    "which is not trained": {"attacks": {"adversarial": Attack("teacher", LABELS, "none")}},
    "must be in ('gaussian', 'uniform', 'none')": {
        "attacks": {"adversarial": Attack("student", LABELS, "gausian")}
    },
    "('eval', 'train'), got 'none' and 'evel'": {
        "attacks": {"adversarial": Attack("student", LABELS, "none", False, "evel")}
    },
    "must be a Confidence, got 3": {"terms": {"ce": CrossEntropy(CLEAN, 1.0, 3)}},
    "must be one of ('mean', 'batchmean'), got 'sum'": {
        "terms": {**ENTROPY, "kl": Divergence(CLEAN, TEACHER, 1.0, 1.0, "sum")}
    },
    "no term has a prediction of peer": {"trained": ("student", "peer")},
    "both must be the same": {
        "later": Later(
            1, Method(("student", "peer"), (CLEAN, PEER), {**ENTROPY, "p": CrossEntropy(PEER, 1.0)})
        )
    },
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_named(words):
    table = Method(**{"trained": ("student",), "forwards": (CLEAN,), "terms": ENTROPY, **MISTAKES[words]})
    assert any(words in one for one in mistakes(table))


def test_a_mistake_in_a_later_table_is_found_now():
    right = Method(trained=("student",), forwards=(CLEAN,), terms=ENTROPY)
    wrong = replace(right, attacks={"clean": ATTACKS["adversarial"]})
    assert list(mistakes(replace(right, later=Later(1, wrong)))) == list(mistakes(wrong))


def test_a_forgotten_comma_is_one_line_for_who_fills_in_the_table():
    with pytest.raises(TypeError, match="must be tuples"):
        list(mistakes(Method(trained=("student"), forwards=(CLEAN,), terms=ENTROPY)))


def test_a_table_without_a_mistake_is_none():
    assert not list(mistakes(Method(trained=("student",), forwards=(CLEAN,), terms=ENTROPY)))


@pytest.mark.parametrize("name", method_names())
def test_no_shipped_table_has_one(name):
    assert not list(mistakes(build_table(name, default_loss(name))))
