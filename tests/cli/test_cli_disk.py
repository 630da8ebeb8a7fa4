"""Disks that are full or read-only: one line, and what was there stays."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cli_files import snapshot, weights


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let every write beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk: two tiny runs fit, no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return disk / "filler"


def checkpoints(run: Path) -> dict[str, bytes | str]:
    return snapshot(run / "checkpoints")


@pytest.mark.parametrize("limit", [1000, pytest.param(100_000, marks=pytest.mark.soak), 400_000])
def test_a_checkpoint_that_cannot_be_written_leaves_the_former(
    fastpeer, tmp_path: Path, stopped: Path, original: Path, limit: int
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run", symlinks=True))
    before = checkpoints(run)
    with files_of_at_most(limit):
        fastpeer("train --resume --train.max-steps 9 --log.every 100 --quiet --out", run).refused(str(run))
    assert checkpoints(run) == before
    fastpeer("train tiny.toml --resume --train.max-steps 0 --quiet --out", run).succeeded()
    assert weights(run) == weights(original)


def test_the_first_checkpoint_cannot_be_written(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with files_of_at_most(100_000):
        fastpeer("train tiny.toml --quiet --out", run).refused(str(run))
    assert not (run / "checkpoints" / "last").exists()


def test_a_full_disk(fastpeer, disk: Path, original: Path) -> None:
    run = disk / "run"
    fastpeer("train tiny.toml --train.max-steps 5 --quiet --out", run).succeeded()
    before = checkpoints(run)
    filler = fill(disk)
    fastpeer("train tiny.toml --resume --train.max-steps 0 --quiet --out", run).refused(str(disk), "space")
    assert checkpoints(run) == before
    assert not [path for path in run.iterdir() if path.name.endswith(".new")]
    fastpeer("eval --attacks clean", run).refused("space")
    fastpeer("train tiny.toml --quiet --out", disk / "other").refused(str(disk / "other"), "space")
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=12m", str(disk)], check=True)
    fastpeer("train tiny.toml --resume --train.max-steps 0 --quiet --out", run).succeeded()
    assert weights(run) == weights(original)


def test_a_read_only_disk(fastpeer, disk: Path) -> None:
    run = disk / "run"
    fastpeer("train tiny.toml --train.max-steps 5 --quiet --out", run).succeeded()
    before = snapshot(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for line in (
        f"train tiny.toml --quiet --out {disk / 'other'}",
        f"train tiny.toml --force --quiet --out {run}",
        f"train tiny.toml --resume --train.max-steps 0 --quiet --out {run}",
        f"eval --attacks clean {run}",
    ):
        fastpeer(line).refused(str(disk), "ead-only")
    assert snapshot(disk) == before


@pytest.mark.soak
def test_files_are_made_with_the_user_s_umask(fastpeer, tmp_path: Path) -> None:
    run, before = tmp_path / "run", os.umask(0o027)
    try:
        fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", run).succeeded()
        fastpeer("eval --attacks clean --quiet", run).succeeded()
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.soak
def test_temporary_files_may_lie_anywhere_or_nowhere(
    fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rename from another device would fail; a folder that is missing is not needed.
    for number, place in enumerate(("/dev/shm", str(tmp_path / "missing"))):
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setattr(tempfile, "tempdir", None)
        run = tmp_path / str(number)
        fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", run).succeeded()
        fastpeer("eval --attacks clean --quiet", run).succeeded()
