"""Runs that differ in their seed alone, as one row: mean and standard deviation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

from fastpeer.config.toml import flat
from fastpeer.errors import UserError
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.targets import Target

NEUTRAL = (
    "seed", "log.", "engine.", "checkpoint.", "record.", "data.residency", "data.reader", "teacher.weights",
    "natural_teacher.weights",
)  # fmt: skip
"""Settings, or the beginnings of their names, in which runs of one row may differ."""


@dataclass(frozen=True)
class Spread:
    """Accuracies in % of students that differ in their seed alone.

    Attributes:
        mean: of all.
        deviation: sample standard deviation, with n − 1.
        doubtful: whether any of them may be too high.
    """

    mean: float
    deviation: float
    doubtful: bool


def seed_groups(targets: Sequence[Target]) -> list[list[Target]]:
    """Return students of the same checkpoint of two or more runs that differ in their seed alone.

    Of runs with the same seed, which are the same run, only the first counts. Teachers may be other files,
    trained with other seeds themselves.
    """
    groups: dict[object, dict[int, Target]] = {}
    for target in targets:
        if target.config is not None and target.checkpoint:
            groups.setdefault(_settings(target), {}).setdefault(target.config.seed, target)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _settings(target: Target) -> object:
    """Return what students of one row have in common; of no other student, if the run does not tell."""
    assert target.config is not None
    assert target.run is not None
    try:
        data = target.run.read_facts()["data"]["train_sha256"]
    except UserError:
        return target
    settings = flat(asdict(target.config)).items()
    kept = [(name, repr(value)) for name, value in settings if not name.startswith(NEUTRAL)]
    return (target.checkpoint, data, *sorted(kept))


def spreads(
    group: Sequence[Target], results: Mapping[Target, Sequence[Result]]
) -> Iterator[tuple[str, Spread]]:
    """Yield attack and spread, for each attack that all students of a group were evaluated with."""
    for first in results[group[0]]:
        alike = [result for target in group for result in results[target] if result.attack == first.attack]
        if len(alike) == len(group):
            figures = [result.accuracy for result in alike]
            doubtful = any(result.warnings for result in alike)
            yield first.attack, Spread(mean(figures), stdev(figures), doubtful)
