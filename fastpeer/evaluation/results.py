"""Results of evaluations: an entry for each (weights, attack), stored in a JSON file."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from fastpeer.errors import UserError, one_line
from fastpeer.run_folder import write_atomically


@dataclass(frozen=True)
class Result:
    """Accuracy of one student under one attack.

    Attributes:
        target: label of the weights in tables.
        weights_sha256: checksum of the weight file.
        attack: clean, fgsm, pgdN or aa.
        correct, images: number of images classified correctly, and of all that were attacked.
        total: number of images in the test split.
        epsilon, step_size, seed, batch_size: settings of the attack.
        targets: number of wrong classes that AutoAttack's targeted attacks aim at; None for other attacks.
        dataset, data_sha256: name of the data set, and checksum of its test split's file.
        seconds: duration of the attack.
        torch: version of PyTorch.
        side: height and width of the images in pixels, where they were resized; 0: as prepared.
        pixels: whether the data set has the official pixels; empty: unknown, or nobody's official ones.
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
    pixels: str = ""

    @property
    def accuracy(self) -> float:
        """Share of the attacked images that were classified correctly, in %."""
        return 100 * self.correct / self.images

    @property
    def confidence_interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval in %; None where all test images were used.

        Wilson's interval holds near 0 and 100 % too. It ignores that the images are a large part of a finite
        set, and is therefore rather too wide.
        """
        if self.images == self.total:
            return None
        bounds = binomtest(self.correct, self.images).proportion_ci(method="wilson")
        return 100 * bounds.low, 100 * bounds.high

    @property
    def key(self) -> tuple[Any, ...]:
        """What was evaluated, and how; a later result with the same key replaces an earlier one."""
        subject = (self.weights_sha256, self.target, self.data_sha256, self.images, self.side)
        return (*subject, self.attack, self.epsilon, self.step_size, self.seed, self.batch_size)


def store_results(file: Path, results: Iterable[Result]) -> None:
    """Add results to a file, replacing earlier ones with the same key.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """
    stored = {result.key: result for result in [*read_results(file), *results]}
    entries = [_entry(result) for result in stored.values()]
    write_atomically(file, json.dumps({"format": 1, "split": "test", "results": entries}, indent=1) + "\n")


def _entry(result: Result) -> dict[str, Any]:
    return {**asdict(result), "accuracy": result.accuracy, "interval95": result.confidence_interval}


def read_results(file: Path) -> list[Result]:
    """Return the results in a file; empty if there is no file.

    Raises:
        UserError: the file holds anything else, or cannot be read.
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
