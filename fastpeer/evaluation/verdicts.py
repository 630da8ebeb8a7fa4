"""Which of AutoAttack's attacks each image fell to, in a file from which a stopped evaluation goes on."""

import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fastpeer.errors import UserError, one_line
from fastpeer.files import read_text, write_atomically

log = logging.getLogger(__name__)
STANDS = -1
"""Of an image: classified correctly so far; 0: wrongly without an attack; k: it fell to the k-th attack."""
FORMAT = 1


class Verdicts:
    """What is known of N images so far, and which batch is attacked next.

    Args:
        images: N.
        attacks: names of the attacks, in order.

    Attributes:
        fallen: int8 (N,): `STANDS`, 0, or the number of the attack that changed the class, from 1 on.
        finite: bool (N,): no logits were NaN or infinite.
        reasons: why the verdicts may be too good.
        seconds: that were spent so far, those before a stop included.
        attack, batch: the next attack's place in `attacks`, and the batch of it; attack -1: none began, and
            the clean images are to be classified.
    """

    def __init__(self, images: int, attacks: tuple[str, ...]) -> None:
        self.attacks = attacks
        self.fallen = np.full(images, STANDS, np.int8)
        self.finite = np.ones(images, bool)
        self.reasons: list[str] = []
        self.seconds = 0.0
        self.attack, self.batch = -1, 0

    @property
    def correct(self) -> np.ndarray:
        """Bool (N,): classified correctly clean and after all attacks so far."""
        stands: np.ndarray = self.fallen == STANDS
        return stands

    def attacked(self) -> np.ndarray:
        """Return the places of the images that the next attack begins with: what the former ones left."""
        left = (self.fallen == STANDS) | (self.fallen == self.attack + 1)
        return np.flatnonzero(left)

    def note(self, places: np.ndarray, correct: np.ndarray, finite: np.ndarray) -> None:
        """Note how the next batch, the images at `places`, was classified, and move on behind it."""
        self.fallen[places[~(correct & finite)]] = self.attack + 1
        self.finite[places] &= finite
        self.batch += 1

    def next_attack(self) -> None:
        """Move on to the first batch of the next attack."""
        self.attack, self.batch = self.attack + 1, 0

    def counts(self) -> dict[str, int]:
        """Return how many images were wrong without an attack, and fell to each attack."""
        names = ("clean", *self.attacks)
        return {name: int((self.fallen == number).sum()) for number, name in enumerate(names)}


class VerdictsFile:
    """Keeps verdicts in `folder`, in a file named after what was attacked and how.

    Args:
        folder: created with the first verdicts.
        facts: weights, data and settings, as JSON can write them; verdicts of any others are not taken.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.facts = json.loads(json.dumps(facts))
        self.path = folder / f"autoattack-{_sha256(self.facts)[:12]}.json"
        self._warned = False

    def read(self, verdicts: Verdicts) -> None:
        """Go on with the verdicts in the file, if it holds any of an evaluation that did not end."""
        try:
            found = json.loads(read_text(self.path))
            if found.pop("sha256") != _sha256(found) or found["facts"] != self.facts:
                raise ValueError("it is damaged")
            if found["format"] != FORMAT:
                raise ValueError(f"its format must be {FORMAT}, got {found['format']}")
            arrays = _checked(found, verdicts)
        except FileNotFoundError:
            return
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
        ) as error:  # fmt: skip
            log.warning("%s: not used (%s); AutoAttack begins anew", self.path, one_line(error))
            return
        if found["attack"] == len(verdicts.attacks):
            return  # It ended: asked for again, it is done again.
        verdicts.fallen, verdicts.finite = arrays
        verdicts.reasons, verdicts.seconds = found["reasons"], found["seconds"]
        verdicts.attack, verdicts.batch = found["attack"], found["batch"]
        attack = verdicts.attacks[verdicts.attack] if verdicts.attack >= 0 else "the clean images"
        log.warning("AutoAttack goes on where it was stopped: %s, batch %d", attack, verdicts.batch + 1)

    def write(self, verdicts: Verdicts) -> None:
        """Replace the file; where that fails, log it once and go on without."""
        entry = {
            "format": FORMAT,
            "facts": self.facts,
            "attacks": list(verdicts.attacks),
            "attack": verdicts.attack,
            "batch": verdicts.batch,
            "reasons": verdicts.reasons,
            "seconds": round(verdicts.seconds, 2),
            "fallen": verdicts.fallen.tolist(),
            "finite": verdicts.finite.astype(int).tolist(),
        }
        entry["sha256"] = _sha256(entry)
        try:
            self.path.parent.mkdir(exist_ok=True)
            write_atomically(self.path, json.dumps(entry) + "\n")
        except (OSError, UserError) as error:
            if not self._warned:
                log.warning("%s: cannot be written (%s); a stop would lose the attacks", self.path, error)
            self._warned = True


def _checked(found: Mapping[str, Any], verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """Return `fallen` and `finite` of a file that anybody may have written; ValueError: it is of others."""
    fallen, finite = np.array(found["fallen"], np.int8), np.array(found["finite"], bool)
    count, attacks = len(verdicts.fallen), len(verdicts.attacks)
    if not fallen.shape == finite.shape == (count,) or fallen.min() < STANDS or fallen.max() > attacks:
        raise ValueError("it is of other images or attacks")
    if type(found["attack"]) is not int or not -1 <= found["attack"] <= attacks:
        raise ValueError("it is of other attacks")
    if type(found["batch"]) is not int or not 0 <= found["batch"] <= count:
        raise ValueError("it is of other images")
    texts = all(isinstance(reason, str) for reason in found["reasons"])
    if not texts or type(found["seconds"]) not in (int, float):
        raise ValueError("its reasons must be texts, its seconds a number")
    return fallen, finite


def _sha256(entry: Mapping[str, Any]) -> str:
    return sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
