"""Results of evaluations: an entry for each (weights, attack), stored in a JSON file."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryFile
from typing import Any

from fastpeer.errors import UserError, one_line
from fastpeer.files import update_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Accuracy of one student under one attack.

    Attributes:
        target: label of the weights in tables.
        weights_sha256: checksum of the weight file.
        attack: clean, fgsm, pgdN, aa or aa-few-classes.
        correct, images: number of images classified correctly, and of all that were attacked.
        total: number of images in the test split.
        epsilon, step_size, seed, batch_size: settings of the attack.
        targets: number of wrong classes that AutoAttack's targeted attacks aim at; None for other attacks.
        dataset, data_sha256: name of the data set, and checksum of its test split's file.
        seconds: duration of the attack.
        torch: version of PyTorch.
        side: height and width of the images in pixels, where they were resized; 0: as prepared.
        non_finite: number of images with logits that are NaN or infinite, none of which counts as correct;
            left out of the file where it is 0.
        pixels: whether the data set has the official pixels; empty: unknown, or nobody's official ones.
        warnings: why the network's robustness may be less than it seems; left out of the file where there are
            none.
        norm: of the ball that the attack stays in: linf, as of older results, or l2.
        broken: how many images each of AutoAttack's attacks broke, and were wrong without one ("clean"); left
            out of the file for other attacks.
        weights_key: which set of weights of a file with several was asked for; empty: the usual one.
        autoattack: who ran AutoAttack's attacks, and on what (`classify_under_autoattack`); empty:
            pyautoattack, as in older results, or another attack.
        mean, std: normalisation inside the network that was asked for; empty: as its run or file records it.
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
    non_finite: int = 0
    pixels: str = ""
    warnings: tuple[str, ...] = ()
    norm: str = "linf"
    weights_key: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    broken: Mapping[str, int] = field(default_factory=dict)
    autoattack: str = ""

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
        return wilson_interval(self.correct, self.images)

    @property
    def key(self) -> tuple[Any, ...]:
        """What was evaluated, and how; a later result with the same key replaces an earlier one."""
        network = (self.weights_sha256, self.target, self.weights_key, self.mean, self.std)
        subject = (*network, self.data_sha256, self.images, self.side)
        attack = (self.attack, self.autoattack)
        return (*subject, *attack, self.norm, self.epsilon, self.step_size, self.seed, self.batch_size)


SPARE = 100_000
"""Bytes that the results of an evaluation may add to a file."""


def check_storable(file: Path) -> None:
    """Make sure that results can be added to a file, without leaving a trace.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """
    size = len(read_results(file)) and file.stat().st_size
    try:
        # Without a name, where the file system has such files: nothing tells of it, even after a kill.
        with TemporaryFile(dir=file.absolute().parent) as trial:
            trial.write(bytes(size + SPARE))
    except OSError as error:
        advice = "evaluate a copy of it in a folder that can be written"
        raise UserError(f"{file}: cannot be written ({error.strerror}): {advice}") from None


class ResultsWriter:
    """Stores results as they are found; what cannot be written is tried again with the next result.

    Attributes:
        unsaved: results that could not be written yet, by their file.
    """

    def __init__(self) -> None:
        self.unsaved: dict[Path, list[Result]] = {}
        self._reason = ""

    def add(self, file: Path, result: Result) -> None:
        """Store a result; if that fails, keep it and log why."""
        waiting = [*self.unsaved.pop(file, []), result]
        try:
            store_results(file, waiting)
        except UserError as error:
            if not self._reason:
                log.warning("%s; the attacks go on, the table will have the results", error)
            self.unsaved[file], self._reason = waiting, str(error)

    def check(self) -> None:
        """Raise a `UserError` if any results were not stored."""
        if self.unsaved:
            count = sum(map(len, self.unsaved.values()))
            raise UserError(f"{self._reason}; {count} results stand in the table above only")


def store_results(file: Path, results: Iterable[Result]) -> None:
    """Add results to a file, replacing earlier ones with the same key.

    Another process may add to the file at the same time; both keep theirs.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """

    def added() -> str:
        stored = {result.key: result for result in [*read_results(file), *results]}
        entries = [_entry(result) for result in stored.values()]
        return json.dumps({"format": 1, "split": "test", "results": entries}, indent=1) + "\n"

    update_atomically(file, added)


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval for an accuracy in %."""
    # By hand: importing scipy.stats takes longer than everything else before a short evaluation.
    share, weight = correct / images, NormalDist().inv_cdf(0.975) ** 2 / images
    half = math.sqrt(weight * (share * (1 - share) + weight / 4))
    low, high = ((share + weight / 2 + side) / (1 + weight) for side in (-half, half))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def _entry(result: Result) -> dict[str, Any]:
    entry = {**asdict(result), "accuracy": result.accuracy, "interval95": result.confidence_interval}
    for name in ("non_finite", "warnings", "weights_key", "mean", "std", "broken", "autoattack"):
        if not entry[name]:
            del entry[name]
    return entry


def _result(entry: dict[str, Any]) -> Result:
    fields: dict[str, Any] = {
        name: tuple(value) if type(value) is list else value
        for name, value in entry.items()
        if name not in ("accuracy", "interval95")
    }
    return Result(**fields)


def read_results(file: Path) -> list[Result]:
    """Return the results in a file; empty if there is no file.

    Raises:
        UserError: the file holds anything else, or cannot be read.
    """
    if not file.exists():
        return []
    try:
        return [_result(entry) for entry in json.loads(file.read_text("utf-8"))["results"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not results of fastpeer eval ({one_line(error)}): move it away") from None
