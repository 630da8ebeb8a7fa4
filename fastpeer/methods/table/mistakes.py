"""What of a table could not be carried out, found when it is filled in."""

from collections.abc import Iterator

from fastpeer.methods.table.forwards import Forward
from fastpeer.methods.table.method import Method
from fastpeer.methods.table.terms import Divergence, InputGradientDistance, forwards_of


def mistakes(method: Method) -> Iterator[str]:
    """Yield a line for each mistake in a table, and in those that take its place later."""
    yield from _of_forwards(method)
    yield from _of_attacks(method)
    yield from _of_terms(method)
    yield from _of_gradients(method)
    yield from _of_balance(method)
    if method.later is not None:
        yield from mistakes(method.later.method)


def _of_forwards(method: Method) -> Iterator[str]:
    for forward in (*method.forwards, *method.afterwards):
        if forward.network not in method.trained:
            yield f"forwards are of trained networks, and {forward.network} is none: leave {forward} out"


def _of_attacks(method: Method) -> Iterator[str]:
    for name, attack in method.attacks.items():
        if isinstance(attack.away_from, Forward) and attack.away_from.images not in ("clean", name):
            yield f"the attack {name} leads away from {attack.away_from}, neither clean images nor its own"


def _of_terms(method: Method) -> Iterator[str]:
    spoken_of = [(name, one) for name, term in method.terms.items() for one in forwards_of(term)]
    for name, forward in spoken_of:
        if forward.images not in ("clean", *method.attacks):
            yield f"the term {name} speaks of {forward}, and no attack is called {forward.images}"
        if forward.network in method.trained and forward not in method.forwards:
            yield f"the term {name} speaks of {forward}, which forwards lacks"


def _of_gradients(method: Method) -> Iterator[str]:
    for name, term in method.terms.items():
        if not isinstance(term, InputGradientDistance):
            continue
        if term.prediction.images != "clean" or term.prediction.network not in method.trained:
            yield f"the term {name} compares input gradients of a trained network, at clean images alone"
        if term.teacher in method.trained:
            yield f"the term {name} takes {term.teacher} for a teacher, which is trained"


def _of_balance(method: Method) -> Iterator[str]:
    for name in method.balance.terms if method.balance else ():
        term = method.terms.get(name)
        if not isinstance(term, Divergence) or term.weight == 0:
            yield f"a balance is of two divergences that weigh something, and {name} is none"
