"""What of a table could not be carried out, or would not do what it says, found when it is filled in."""

from collections.abc import Iterator
from typing import get_args

from fastpeer.kernels.terms import Reduction
from fastpeer.methods.table import (
    LABELS,
    BatchNormMode,
    Confidence,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    Method,
    Network,
    Noise,
    Term,
    forwards_of,
)

LEARNERS = ("student", "peer")
_STARTS, _MODES = get_args(Noise), get_args(BatchNormMode)


def mistakes(method: Method) -> Iterator[str]:
    """Yield a line for each mistake in a table, and in those that take its place later."""
    yield from _of_networks(method)
    yield from _of_forwards(method)
    yield from _of_attacks(method)
    for name, term in method.terms.items():
        yield from _of_term(name, term, method)
    yield from _of_learning(method)
    yield from _of_balance(method)
    yield from _of_later(method)


def _of_networks(method: Method) -> Iterator[str]:
    if not isinstance(method.trained, tuple) or not isinstance(method.forwards, tuple):
        # ("student") is a text: what comes after this would speak of its letters.
        raise TypeError('trained and forwards must be tuples, such as ("student",)')
    if "student" not in method.trained or not set(method.trained) <= set(LEARNERS):
        yield f"trained must be the student, alone or with the peer, got {method.trained}"
    for name in method.frozen:
        if name in LEARNERS or name not in get_args(Network):
            yield f"it refers to the network {name}, neither trained nor a teacher or natural_teacher"


def _of_forwards(method: Method) -> Iterator[str]:
    for forward in (*method.forwards, *method.afterwards):
        if forward.network not in method.trained:
            yield f"forwards are of trained networks, and {forward.network} is none: leave {forward} out"
        if forward.images not in ("clean", *method.attacks):
            yield f"forwards has {forward}, and no attack is called {forward.images}"


def _of_attacks(method: Method) -> Iterator[str]:
    if "clean" in method.attacks:
        yield "clean are the images without an attack: call the attack something else"
    for name, attack in method.attacks.items():
        away: object = attack.away_from
        if not isinstance(away, Forward) and away != LABELS:
            yield f"the attack {name} must lead away from LABELS or a Forward, got {away!r}"
        if isinstance(away, Forward) and away.images not in ("clean", name):
            yield f"the attack {name} leads away from {away}, neither clean images nor its own"
        if isinstance(away, Forward) and (away.network, away.images) == (attack.victim, name):
            yield f"the attack {name} leads {attack.victim} away from its own prediction on the same images"
        if attack.victim not in method.trained:
            yield f"the attack {name} is on {attack.victim}, which is not trained"
        if attack.start not in _STARTS or attack.batchnorm not in _MODES:
            found = f"{attack.start!r} and {attack.batchnorm!r}"
            yield f"start and batchnorm of the attack {name} must be in {_STARTS} and {_MODES}, got {found}"


def _of_term(name: str, term: Term, method: Method) -> Iterator[str]:
    for forward in forwards_of(term):
        if forward.images not in ("clean", *method.attacks):
            yield f"the term {name} refers to {forward}, and no attack is called {forward.images}"
        if forward.network in method.trained and forward not in method.forwards:
            yield f"the term {name} refers to {forward}, which forwards lacks"
    if isinstance(term, InputGradientDistance):
        if term.prediction.images != "clean" or term.prediction.network not in method.trained:
            yield f"the term {name} compares input gradients of a trained network, at clean images alone"
        if term.teacher in method.trained:
            yield f"the term {name} takes {term.teacher} for a teacher, which is trained"
        return
    if not isinstance(term.sample_weight, Confidence | None):
        yield f"the sample weight of the term {name} must be a Confidence, got {term.sample_weight!r}"
    if not isinstance(term, CrossEntropy) and term.reduction not in get_args(Reduction):
        yield f"the reduction of the term {name} must be one of {get_args(Reduction)}, got {term.reduction!r}"


def _of_learning(method: Method) -> Iterator[str]:
    taught = {term.prediction.network for term in method.terms.values()}
    for name in method.trained:
        if name not in taught:
            yield f"no term has a prediction of {name}, which is trained"


def _of_balance(method: Method) -> Iterator[str]:
    if method.balance is None:
        return
    if len(set(method.balance.terms)) != 2 or method.later is not None:
        yield "a balance is of two divergences, and of the whole training"
    for name in method.balance.terms:
        term = method.terms.get(name)
        if not isinstance(term, Divergence) or term.weight == 0 or term.sample_weight is not None:
            yield f"a balance must be of divergences that weigh something, all samples alike, got {name}"


def _of_later(method: Method) -> Iterator[str]:
    if method.later is None:
        return
    if method.later.method.trained != method.trained:
        yield f"later trains {method.later.method.trained}, now {method.trained}: both must be the same"
    yield from mistakes(method.later.method)
