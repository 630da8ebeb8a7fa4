"""A run that was killed at any change it makes on the disk ends with the same bits when it goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cli_files import metrics, weights
from kill_points import Points, run

from fastpeer.cli.main import main
from fastpeer.run_folder import RunFolder

RUN = ["train", "tiny.toml", "--quiet", "--train.epochs", "2", "--train.batch-size", "18", "--log.every", "1"]
"""Two epochs of two steps: last is saved three times, best once or twice, the average once."""


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that nothing interrupted, and the changes it made."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        # In this process, so that what it imports and compiles is there in its copies.
        assert main([*RUN, "--out", str(folder / "run")]) == 0
        code, seen = run([*RUN, "--out", str(folder / "watched")], Points(str(folder / "watched")))
    assert code == 0
    assert weights(folder / "watched") == weights(folder / "run")
    return folder / "run", seen


def same_after_a_kill(folder: Path, whole: Path, point: int, torn: bool) -> None:
    """Kill a run at a point, go on as its user would, and compare."""
    code, _ = run([*RUN, "--out", str(folder)], Points(str(folder), point, torn))
    assert code == -signal.SIGKILL
    words = ["train", "--resume", "--quiet"] if RunFolder(folder).holds_work else RUN
    code, _ = run([*words, "--out", str(folder)], Points(str(folder)))
    assert code == 0
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)
    left = {path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()}
    assert left <= {".config.toml.new", ".run.json.new"}


@pytest.fixture
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)


def points_of(seen: list[str]) -> list[tuple[int, bool]]:
    """Return all points of a run; at each file that is flushed another, at which it is half written."""
    whole = [(number, False) for number in range(1, len(seen) + 1)]
    # The log was flushed before, and what is added to it since the last checkpoint is cut.
    torn = [
        (number, True)
        for number, what in enumerate(seen, 1)
        if what.startswith("fsync") and "." in what[-12:]
    ]
    return whole + [point for point in torn if "metrics" not in seen[point[0] - 1]]


@pytest.mark.parametrize("part", [0.6, pytest.param(0.05, marks=pytest.mark.soak)])
@pytest.mark.usefixtures("in_workshop")
def test_some_points(tmp_path: Path, whole: tuple[Path, list[str]], part: float) -> None:
    folder, seen = whole
    same_after_a_kill(tmp_path / "run", folder, int(part * len(seen)), torn=False)


@pytest.mark.soak
@pytest.mark.parametrize("share", range(8))
@pytest.mark.usefixtures("in_workshop")
def test_every_point(tmp_path: Path, whole: tuple[Path, list[str]], share: int) -> None:
    folder, seen = whole
    points = points_of(seen)[share::8]
    for point, torn in points:
        try:
            same_after_a_kill(tmp_path / f"{point}{'-torn' * torn}", folder, point, torn)
        except AssertionError as error:
            raise AssertionError(f"killed before {seen[point - 1]} ({point}, torn: {torn})") from error
    print(f"{len(points)} of {len(points_of(seen))} points")
