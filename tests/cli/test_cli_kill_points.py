"""A run that was killed at any change it makes on the disk ends with the same bits when it goes on.

Between two changes the disk is as before the second: a kill within a step, the selection or the average's
BatchNorm pass leaves what a kill before the next change leaves.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_files import metrics, weights
from kill_points import Points, run

from fastpeer.cli.main import main
from fastpeer.run_folder import RunFolder

RUN = ["train", "tiny.toml", "--quiet", "--train.epochs", "2", "--train.batch-size", "18", "--log.every", "1"]
"""Two epochs of two steps: last is saved three times, best once or twice, the average once."""
RESUME = ["train", "--resume", "--quiet", "--train.max-steps", "0"]


@dataclass(frozen=True)
class Begun:
    """Runs to be killed, all from one beginning.

    Attributes:
        words: the command that is killed, but for --out.
        beginning: a folder to begin with; None: none.
        whole: the same run, which nothing interrupted.
        seen: the changes that the command makes.
    """

    words: list[str]
    beginning: Path | None
    whole: Path
    seen: list[str]


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        # In this process, so that what it imports and compiles is there in its copies.
        assert main([*RUN, "--out", str(folder)]) == 0
    return folder


def stopped(folder: Path) -> None:
    """Stop within the first epoch."""
    assert run([*RUN, "--train.max-steps", "1", "--out", str(folder)], Points(str(folder)))[0] == 0


def damaged(folder: Path) -> None:
    """Stop within the second epoch, with a damaged last: it goes on from the one before."""
    assert run([*RUN, "--train.max-steps", "3", "--out", str(folder)], Points(str(folder)))[0] == 0
    (folder / "checkpoints" / "last" / "peer.safetensors").write_bytes(b"")


def killed(folder: Path) -> None:
    """Die within the checkpoint of the first epoch's end, and leave what was written of it."""
    words = [*RUN, "--out", str(folder)]
    _, seen = run(words, Points(str(folder)))
    shutil.rmtree(folder)
    within = [point for point, torn in points_of(seen) if torn and "/.last-000000002/" in seen[point - 1]]
    code, _ = run(words, Points(str(folder), within[1], torn=True))
    assert code == -signal.SIGKILL
    assert RunFolder(folder).has_checkpoint


BEGINNINGS = {"new": None, "stopped": stopped, "damaged": damaged, "killed": killed}


@pytest.fixture(scope="module")
def begun(workshop: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Begun]:
    """Returns runs to be killed, by what they begin with."""
    known: dict[str, Begun] = {}

    def begun(name: str) -> Begun:
        if name not in known:
            known[name] = watched(BEGINNINGS[name], whole, tmp_path_factory.mktemp(name))
        return known[name]

    return begun


def watched(begin: Callable[[Path], None] | None, whole: Path, folder: Path) -> Begun:
    beginning = folder / "beginning" if begin else None
    if begin and beginning:
        begin(beginning)
    words = RESUME if begin else RUN
    out = copied(beginning, folder / "watched")
    code, seen = run([*words, "--out", str(out)], Points(str(out)))
    assert code == 0
    assert weights(out) == weights(whole)
    return Begun(words, beginning, whole, seen)


def copied(beginning: Path | None, folder: Path) -> Path:
    return folder if beginning is None else Path(shutil.copytree(beginning, folder, symlinks=True))


def same_after_a_kill(folder: Path, begun: Begun, point: int, torn: bool) -> None:
    """Kill a run at a point, go on as its user would, and compare."""
    copied(begun.beginning, folder)
    code, _ = run([*begun.words, "--out", str(folder)], Points(str(folder), point, torn))
    assert code == -signal.SIGKILL
    words = RESUME if RunFolder(folder).holds_work else RUN
    code, _ = run([*words, "--out", str(folder)], Points(str(folder)))
    assert code == 0
    assert weights(folder) == weights(begun.whole)
    assert metrics(folder) == metrics(begun.whole)
    left = {path.name for path in folder.iterdir()} - {path.name for path in begun.whole.iterdir()}
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


@pytest.mark.parametrize(
    ("beginning", "part"),
    [
        pytest.param("new", 0.6, marks=pytest.mark.soak),
        pytest.param("new", 0.05, marks=pytest.mark.soak),
        ("stopped", 0.5),
    ],
)
@pytest.mark.usefixtures("in_workshop")
def test_some_points(tmp_path: Path, begun: Callable[[str], Begun], beginning: str, part: float) -> None:
    found = begun(beginning)
    same_after_a_kill(tmp_path / "run", found, int(part * len(found.seen)), torn=False)


@pytest.mark.soak
@pytest.mark.parametrize("share", range(8))
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.usefixtures("in_workshop")
def test_every_point(tmp_path: Path, begun: Callable[[str], Begun], beginning: str, share: int) -> None:
    found = begun(beginning)
    points = points_of(found.seen)[share::8]
    for point, torn in points:
        folder = tmp_path / f"{point}{'-torn' * torn}"
        try:
            same_after_a_kill(folder, found, point, torn)
        except AssertionError as error:
            where = f"{beginning}, killed before {found.seen[point - 1]} ({point}, torn: {torn})"
            raise AssertionError(where) from error
        shutil.rmtree(folder)
    print(f"{beginning}: {len(points)} of {len(points_of(found.seen))} points")
