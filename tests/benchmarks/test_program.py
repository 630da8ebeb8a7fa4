"""What a benchmark is told on its command line."""

from dataclasses import dataclass

import pytest

from benchmarks.harness.program import Timed, check_numbers
from fastpeer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Some more numbers."""

    batches: tuple[int, ...] = (1, 128)
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1)
    plain: bool = False
    size: int | None = None


def test_usual_numbers_are_taken():
    check_numbers(Arguments())
    check_numbers(Arguments(seed=7, seconds=0.0, batches=(), seeds=(0,), size=32, plain=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
        ({"seconds": -0.5}, "--seconds must be 0 or more, got -0.5"),
        ({"budget": float("nan")}, "--budget must be 0 or more, got nan"),
        ({"batches": (8, -1)}, "--batches must be 1 or more, got -1"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
    ],
)
def test_numbers_that_measure_nothing_are_refused_in_one_line(given, told):
    with pytest.raises(UserError, match=told):
        check_numbers(Arguments(**given))
