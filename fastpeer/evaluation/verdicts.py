"""Which of AutoAttack's attacks each image fell to, in a file from which a stopped evaluation goes on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastpeer.evaluation.state_file import StateFile

log = logging.getLogger(__name__)
STANDS = -1
"""Of an image: classified correctly so far; 0: wrongly without an attack; k: it fell to the k-th attack."""
FORMAT = 2


class Verdicts:
    """What is known of N images so far, and which batches are still to be attacked.

    An attack's batches are what the former attacks left, cut in order: they may be attacked in any order, by
    several processes too.

    Args:
        images: N.
        attacks: names of the attacks, in order.
        batch_size: images attacked at once.

    Attributes:
        fallen: int8 (N,): `STANDS`, 0, or the number of the attack that changed the class, from 1 on.
        finite: bool (N,): no logits were NaN or infinite.
        reasons: why the verdicts may be too good.
        seconds: that were spent so far, those before a stop included.
        attack: place in `attacks` of the attack that runs; -1: none began, and the clean images are to be
            classified; the number of attacks: all is done.
        done: numbers of the batches that it has done, from 0.
        passes: by attack, how often images went through the network, forward and backward each once.
    """

    def __init__(self, images: int, attacks: tuple[str, ...], batch_size: int) -> None:
        self.attacks, self.batch_size = attacks, batch_size
        self.fallen = np.full(images, STANDS, np.int8)
        self.finite = np.ones(images, bool)
        self.reasons: list[str] = []
        self.seconds = 0.0
        self.attack = -1
        self.done: set[int] = set()
        self.passes = [0] * len(attacks)

    @property
    def correct(self) -> np.ndarray:
        """Bool (N,): classified correctly clean and after all attacks so far."""
        stands: np.ndarray = self.fallen == STANDS
        return stands

    @property
    def complete(self) -> bool:
        """Whether all attacks have ended."""
        return self.attack == len(self.attacks)

    @property
    def number_done(self) -> int:
        """How many images the attack has done, or need not attack."""
        left = sum(len(self.batch(number)) for number in self.batches_left())
        return len(self.fallen) - left

    def batch(self, number: int) -> np.ndarray:
        """Return the places of the images in a batch of the attack that runs."""
        begun = np.flatnonzero((self.fallen == STANDS) | (self.fallen == self.attack + 1))
        return begun[number * self.batch_size : (number + 1) * self.batch_size]

    def batches_left(self) -> list[int]:
        """Return the numbers of the batches that the attack which runs has not done."""
        begun = int(((self.fallen == STANDS) | (self.fallen == self.attack + 1)).sum())
        return [number for number in range(-(-begun // self.batch_size)) if number not in self.done]

    def note(self, number: int, correct: np.ndarray, finite: np.ndarray) -> None:
        """Note how a batch was classified: bool (B,), correctly, and with finite logits."""
        places = self.batch(number)
        self.fallen[places[~(correct & finite)]] = self.attack + 1
        self.finite[places] &= finite
        self.done.add(number)

    def move_on(self) -> None:
        """Go on to the next attack that has something to attack, if this one has done all its batches."""
        while not self.complete and not self.batches_left():
            self.attack, self.done = self.attack + 1, set()

    def counts(self) -> dict[str, int]:
        """Return how many images were wrong without an attack, and fell to each attack."""
        names = ("clean", *self.attacks)
        return {name: int((self.fallen == number).sum()) for number, name in enumerate(names)}


class VerdictsFile(StateFile):
    """Keeps verdicts in `folder`, in a file named after what was attacked and how.

    Args:
        folder: created with the first verdicts.
        facts: weights, data and settings, as JSON can write them; verdicts of any others are not taken.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, "autoattack", "AutoAttack", facts, FORMAT)

    def of(self, **facts: Any) -> "VerdictsFile":
        """Return the file for verdicts of which more facts are known."""
        return VerdictsFile(self.folder, self.facts | facts)

    def go_on(self, verdicts: Verdicts) -> None:
        """Go on with the verdicts in the file, if it holds any of an evaluation that did not end."""
        found = self.read(lambda found: {**found, "arrays": _checked(found, verdicts)})
        # One that ended is done again when it is asked for again.
        if found is None or found["attack"] == len(verdicts.attacks):
            return
        verdicts.fallen, verdicts.finite = found["arrays"]
        verdicts.reasons, verdicts.seconds = found["reasons"], found["seconds"]
        verdicts.attack, verdicts.done = found["attack"], set(found["done"])
        verdicts.passes = found["passes"]
        verdicts.move_on()
        if left := verdicts.batches_left():
            attack = verdicts.attacks[verdicts.attack] if verdicts.attack >= 0 else "the clean images"
            batch = f"batch {left[0] + 1} of {len(left) + len(verdicts.done)}"
            log.warning("AutoAttack goes on where it was stopped: %s, %s", attack, batch)

    def keep(self, verdicts: Verdicts) -> None:
        """Replace the file; where that fails, log it once and go on without."""
        self.write(
            {
                "attacks": list(verdicts.attacks),
                "attack": verdicts.attack,
                "done": sorted(verdicts.done),
                "passes": verdicts.passes,
                "reasons": verdicts.reasons,
                "seconds": round(verdicts.seconds, 2),
                "fallen": verdicts.fallen.tolist(),
                "finite": verdicts.finite.astype(int).tolist(),
            }
        )


def _checked(found: Mapping[str, Any], verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """Return `fallen` and `finite` of a file that anybody may have written; ValueError: it is of others."""
    fallen, finite = np.array(found["fallen"], np.int8), np.array(found["finite"], bool)
    count, attacks = len(verdicts.fallen), len(verdicts.attacks)
    if not fallen.shape == finite.shape == (count,) or fallen.min() < STANDS or fallen.max() > attacks:
        raise ValueError("it is of other images or attacks")
    if type(found["attack"]) is not int or not -1 <= found["attack"] <= attacks:
        raise ValueError("it is of other attacks")
    numbers = [*found["done"], *found["passes"]]
    if len(found["passes"]) != attacks or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("it is of other attacks")
    texts = all(isinstance(reason, str) for reason in found["reasons"])
    if not texts or type(found["seconds"]) not in (int, float):
        raise ValueError("its reasons must be texts, its seconds a number")
    return fallen, finite
