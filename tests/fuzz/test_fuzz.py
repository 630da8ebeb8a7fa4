"""No changed file, recipe or command line ends in a traceback, a crash, a hang or a write elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.kinds import KINDS
from tests.fuzz.table import COUNTS, SEED, fuzz_apart, row

OF_A_RUN = list(KINDS)[list(KINDS).index("state of a run") :]
"""Kinds of which one training makes the examples."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_A_RUN])
def test_a_few(tmp_path: Path, kind: str) -> None:
    outcomes, failures = fuzz(kind, SEED, 10, tmp_path)
    assert failures == []
    assert sum(outcomes.values()) == 10


@pytest.mark.soak
def test_a_few_of_a_run(tmp_path: Path) -> None:
    for kind in OF_A_RUN:
        outcomes, failures = fuzz(kind, SEED, 1, tmp_path)
        assert failures == []
        assert sum(outcomes.values()) == 1


def test_every_kind_is_counted() -> None:
    assert list(COUNTS) == list(KINDS)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_thousands(kind: str) -> None:
    """In a process of their own, where all that is written is seen."""
    report = fuzz_apart(kind, COUNTS[kind])
    print(row(kind, report))
    assert report["failures"] == []
    assert report["outside"] == []
    assert not kind.startswith("known") or report["counts"].keys() <= {"refused", "accepted"}
