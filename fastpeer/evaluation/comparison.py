"""Two students image by image: McNemar's test of whether one is more robust than the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastpeer.config import format_fraction
from fastpeer.errors import UserError, counted
from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.results import Result, images_of
from fastpeer.evaluation.targets import Target

CHANCE = 0.05
"""A difference with a larger p is called one that may be chance."""


@dataclass(frozen=True)
class Comparison:
    """How two students differ on the same images.

    Attributes:
        first_only, second_only: number of images that only the first, or only the second, is right on.
        images: number of all images.
        p: of McNemar's test.
    """

    first_only: int
    second_only: int
    images: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare two students by McNemar's test (Psychometrika 1947), exact: binomial, two-sided.

    p is the probability that students of the same accuracy differ on the images as unevenly as these two do.

    Args:
        first: bool (N,), whether the first student is right on each of N images.
        second: bool (N,), likewise.
    """
    # Imported here: it takes a while. Not scipy.stats, which takes seconds.
    from scipy.special import bdtr

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    fewer, differing = min(only_first, only_second), only_first + only_second
    p = min(1.0, 2 * float(bdtr(fewer, differing, 0.5))) if differing else 1.0
    return Comparison(only_first, only_second, len(first), p)


def comparisons(results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    """Yield lines on how the first run's students differ from those of each other run, attack by attack.

    Students of runs are compared with those of the same checkpoint; others with all. What was attacked in
    another way, or on other images, is not compared.
    """
    lines = [line for pair in _pairs(list(results)) for line in _lines(*pair, results)]
    if lines:
        yield "image by image, by McNemar's exact test:"
    for line in lines:
        yield f"  {line}"


def _pairs(targets: Sequence[Target]) -> Iterator[tuple[Target, Target]]:
    own = [target for target in targets if _subject(target) == _subject(targets[0])]
    others = [target for target in targets if target not in own]
    for first in own:
        for second in others:
            if first.checkpoint == second.checkpoint or not (first.checkpoint and second.checkpoint):
                yield first, second


def _subject(target: Target) -> object:
    """Return what one of the words on a command line stood for: a run, or a file or folder."""
    return target.run.path.absolute() if target.run and target.checkpoint else target.weights


def _lines(first: Target, second: Target, results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    others = {_attack(result): result for result in results[second]}
    radii = {result.epsilon for result in results[first] if result.attack != "clean"}
    for result in results[first]:
        other = others.get(_attack(result))
        if other is None:
            continue
        name = heading(result.attack, result.norm)
        if len(radii) > 1 and result.attack != "clean":
            name += f", epsilon {format_fraction(result.epsilon)}"
        try:
            found = _compared((first, result), (second, other))
        except UserError as error:
            yield f"{name}: not compared: {error}"
            continue
        if found is not None:
            yield f"{name}: {_in_words(first.label, second.label, found)}"


def _attack(result: Result) -> tuple[object, ...]:
    subject = (result.data_sha256, result.side, result.images)
    return (*subject, result.attack, result.norm, result.epsilon, result.step_size)


def _compared(first: tuple[Target, Result], second: tuple[Target, Result]) -> Comparison | None:
    """Compare two results; None if they are of other images."""
    ours, theirs = (images_of(target.results_file, result) for target, result in (first, second))
    if not np.array_equal(ours.index, theirs.index):
        return None
    return mcnemar(ours.correct, theirs.correct)


def _in_words(first: str, second: str, found: Comparison) -> str:
    chance = ", which may be chance" if found.p > CHANCE else ""
    return (
        f"{first} is right on {counted(found.first_only, 'image')} where {second} is wrong,"
        f" {found.second_only} the other way, of {found.images}: p = {found.p:.2g}{chance}"
    )
