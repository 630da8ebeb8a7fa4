"""The attacks of `fastpeer eval`, by name. A new one is a line in `ATTACKS`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fastpeer.errors import UserError
from fastpeer.evaluation.attacks import (
    AttackSettings,
    LabelAttack,
    MarginVictim,
    Record,
    fgsm,
    label_pgd,
    no_attack,
)
from fastpeer.evaluation.autoattack_parts.standard import FEW_CLASSES, attacks_of_set, check_classes
from fastpeer.kernels.choice import Kernels
from fastpeer.suggestions import similar
from fastpeer.victims.compiled import EagerVictim
from fastpeer.victims.interface import Victim

AUTOATTACK = "aa"


@dataclass(frozen=True)
class Workbench:
    """What an attack is built with.

    Attributes:
        victim: prepares the attacked network, and returns it.
        kernels: for the update of the iterate.
        settings: of the evaluation.
        record: captures functions of tensors, where the device can.
    """

    victim: Callable[[], EagerVictim]
    kernels: Kernels
    settings: AttackSettings
    record: Record

    def pgd(self, victim: Victim, steps: int, bounded: bool = True) -> LabelAttack:
        """Return PGD on a victim's loss, with the evaluation's settings."""
        settings = self.settings
        return label_pgd(
            victim, self.kernels, settings.epsilon, settings.step_size, steps, settings.seed,
            norm=settings.norm, record=self.record, bounded=bounded,
        )  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """An attack that may be named.

    Attributes:
        heading: its name in tables; "{}" stands for its number of steps.
        l2_heading: the same for norm l2, where that is another.
        build: makes it, with a number of steps; None: it consists of `autoattacks`.
        steps: how many it takes where its name has no number; 0: the name must have one; None: it takes none.
            With steps it may have restarts, too.
        autoattacks: which of AutoAttack's attacks run, in order, for a number of classes; None: none of them.
    """

    heading: str
    build: Callable[[Workbench, int], LabelAttack] | None = None
    steps: int | None = None
    autoattacks: Callable[[int], tuple[str, ...]] | None = None
    l2_heading: str = ""


ATTACKS: Mapping[str, Attack] = {
    "clean": Attack("clean", lambda bench, steps: no_attack()),
    "fgsm": Attack(
        "FGSM",
        lambda bench, steps: fgsm(bench.victim(), bench.kernels, bench.settings.epsilon, bench.settings.norm),
        l2_heading="FGM",  # along the gradient, not its sign
    ),
    "pgd": Attack("PGD-{}", lambda bench, steps: bench.pgd(bench.victim(), steps), steps=0),
    "cw": Attack(
        "CW-{}",
        lambda bench, steps: bench.pgd(MarginVictim(bench.victim()), steps),
        steps=30,  # as in IAD's released evaluation
        l2_heading="margin PGD-{}",  # CW in L2 is another attack
    ),
    # Of steps of 2/255, 100 lead anywhere that matters.
    "unbounded": Attack(
        "PGD-{}, unbounded", lambda bench, steps: bench.pgd(bench.victim(), steps, bounded=False), steps=100
    ),
    AUTOATTACK: Attack("AutoAttack", autoattacks=partial(attacks_of_set, AUTOATTACK)),
    FEW_CLASSES: Attack("AA, few classes", autoattacks=partial(attacks_of_set, FEW_CLASSES)),
    "apgd-ce": Attack("APGD-CE", autoattacks=lambda classes: ("apgd-ce",)),
    "apgd-t": Attack("APGD-T", autoattacks=lambda classes: ("apgd-t",)),
    "fab-t": Attack("FAB-T", autoattacks=lambda classes: ("fab-t",)),
    "square": Attack("Square", autoattacks=lambda classes: ("square",)),
}
"""The attacks of `fastpeer eval --attacks`: pgd20 is PGD of 20 steps, pgd20x5 that from 5 random starts."""


class AttackName(NamedTuple):
    """What a name says: its key in `ATTACKS`, the number of steps, and from how many starts."""

    kind: str
    steps: int
    restarts: int

    @property
    def attack(self) -> Attack:
        """The attack that is named."""
        return ATTACKS[self.kind]

    def __str__(self) -> str:
        steps = str(self.steps) if self.steps else ""
        return f"{self.kind}{steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")


def split_name(name: str) -> AttackName | None:
    """Return what a name says; None: there is no such attack."""
    # Of at most nine digits: int() refuses thousands of them.
    match = re.fullmatch(r"([a-z-]+)([1-9][0-9]{0,8})?(?:x([1-9][0-9]{0,8}))?", name)
    attack = ATTACKS.get(match[1]) if match else None
    if match is None or attack is None:
        return None
    steps, restarts = int(match[2] or attack.steps or 0), int(match[3] or 1)
    known = bool(steps) if attack.steps is not None else (match[2], match[3]) == (None, None)
    return AttackName(match[1], steps, restarts) if known else None


def known_name(name: str) -> AttackName:
    """Return what a name says that `parse_attacks` has accepted."""
    found = split_name(name)
    assert found is not None, name
    return found


def uses_autoattack(name: str) -> bool:
    """Tell whether a name stands for AutoAttack, or for attacks of it."""
    found = split_name(name)
    return found is not None and found.attack.autoattacks is not None


def autoattacks_of(name: str, classes: int) -> tuple[str, ...]:
    """Return which of AutoAttack's attacks run, in order, for a name that `parse_attacks` has accepted.

    Raises:
        UserError: it is not defined for so few, or so many, classes.
    """
    choose = known_name(name).attack.autoattacks
    attacks = choose(classes) if choose else ()
    check_classes(attacks, classes)
    return attacks


def parse_attacks(text: str, flag: str = "--attacks") -> list[str]:
    """Split "clean,fgsm,pgd20,cw,aa" into known names, which say their numbers: cw is cw30.

    Args:
        text: the names.
        flag: what they were given by, for messages.

    Raises:
        UserError: an unknown name, or no name at all.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{flag} must name at least one attack, such as clean,fgsm,pgd20,aa")
    names = {word: split_name(word) for word in words}
    for word, name in names.items():
        if name is None:
            raise UserError(f"unknown attack {word}; {_nearest(word)}")
    return list(dict.fromkeys(map(str, names.values())))


def _nearest(word: str) -> str:
    numbered = ("pgd10", "pgd20", "pgd100", "pgd20x5")
    near = similar(word, (*numbered, *(kind for kind, attack in ATTACKS.items() if attack.steps != 0)))
    meant = f"did you mean {', '.join(near)}?" if near else f"the attacks are {', '.join(ATTACKS)}"
    return f"{meant} (pgdN takes N steps, pgdNxR the same from R random starts)"


def fewest_steps(names: Iterable[str]) -> int:
    """Return the number of steps of the shortest bounded PGD among attacks' names; 0: there is none."""
    found = map(known_name, names)
    return min((name.steps for name in found if name.steps and name.kind != "unbounded"), default=0)


def heading(name: str, norm: str = "linf") -> str:
    """Return how tables call an attack; of names that this version does not know, the name."""
    found = split_name(name)
    if found is None:
        return name.upper()
    text = (norm == "l2" and found.attack.l2_heading) or found.attack.heading
    return text.format(found.steps) + (f", {found.restarts} starts" if found.restarts > 1 else "")
