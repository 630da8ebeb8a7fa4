"""What an evaluation found: one record for each (weights, attack), kept in a JSON file."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from fastpeer.errors import UserError, one_line
from fastpeer.run_folder import write_text


@dataclass(frozen=True)
class Result:
    """Accuracy of one student under one attack.

    Attributes:
        target: what tables call the weights.
        weights_sha256: which weights.
        attack: clean, fgsm, pgdN or aa.
        correct, images: how many of how many images were classified right.
        total: images in the test split.
        epsilon, step_size, seed, batch_size: of the attack.
        targets: wrong classes that AutoAttack's targeted attacks aim at.
        dataset, data_sha256: its name, and the checksum of the test split's file.
        seconds: how long it took.
        torch: version.
        side: of the images as the network saw them, in pixels, where they were resized; 0: as prepared.
    """

    target: str
    weights_sha256: str
    attack: str
    correct: int
    images: int
    total: int
    epsilon: float
    step_size: float
    seed: int
    batch_size: int
    targets: int | None
    dataset: str
    data_sha256: str
    seconds: float
    torch: str
    side: int = 0

    @property
    def accuracy(self) -> float:
        """In per cent."""
        return 100 * self.correct / self.images

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval in per cent, where fewer than all images were used.

        Wilson's holds near 0 and 100 % too. That the images are a large part of a finite set is left
        out of account, so it is rather too wide.
        """
        if self.images == self.total:
            return None
        bounds = binomtest(self.correct, self.images).proportion_ci(method="wilson")
        return 100 * bounds.low, 100 * bounds.high

    @property
    def question(self) -> tuple[Any, ...]:
        """What was asked, without the answer; a later result for the same replaces the former."""
        who = (self.weights_sha256, self.target, self.data_sha256, self.images, self.side)
        return (*who, self.attack, self.epsilon, self.step_size, self.seed, self.batch_size)


def store_results(file: Path, results: Iterable[Result]) -> None:
    """Add results to a file, in place of former ones that answer the same question.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """
    kept = {result.question: result for result in [*read_results(file), *results]}
    entries = [_entry(result) for result in kept.values()]
    write_text(file, json.dumps({"format": 1, "split": "test", "results": entries}, indent=1) + "\n")


def _entry(result: Result) -> dict[str, Any]:
    return {**asdict(result), "accuracy": result.accuracy, "interval95": result.interval}


def read_results(file: Path) -> list[Result]:
    """Return the results in a file; none where there is no file.

    Raises:
        UserError: the file holds something else.
    """
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text("utf-8"))["results"]
        derived = ("accuracy", "interval95")
        return [
            Result(**{name: value for name, value in entry.items() if name not in derived})
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not results of fastpeer eval ({one_line(error)}): move it away") from None
