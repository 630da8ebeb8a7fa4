from __future__ import annotations

import functools
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_files import CIFAR10, RECIPE, Outcome, make_images

from fastpeer.cli.main import main
from fastpeer.data import beton

Command = Callable[..., Outcome]


@pytest.fixture(scope="package", autouse=True)
def compiled_once() -> Iterator[None]:
    """FFCV compiles for each loader anew, a second each time: keep those of files that did not change."""
    compiling = beton._ffcv_loader

    @functools.cache
    def kept(path: Path, stamp: tuple[int, int, int], batch_size: int, side: int) -> object:
        return compiling(path, batch_size, side)

    def loader(path: Path, batch_size: int, side: int = 0) -> object:
        facts = path.stat()
        return kept(path.resolve(), (facts.st_ino, facts.st_size, facts.st_mtime_ns), batch_size, side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "_ffcv_loader", loader)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_trainings(short_look_for_overfitting: None) -> None:
    """Many tests train."""


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that no table is too wide for."""
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture(scope="package")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/photos, data/cifar10 and tiny.toml."""
    folder = tmp_path_factory.mktemp("workshop")
    photos = make_images(folder / "sources" / "photos", ["ant", "bee", "cat", "dog"], 10, 3, 8)
    cifar10 = make_images(folder / "sources" / "cifar10", CIFAR10, 4, 2, 8)
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    for words in (
        ["--dataset", "folder", "--source", str(photos), "--out", str(folder / "data" / "photos")],
        ["--dataset", "cifar10", "--source", str(cifar10), "--out", str(folder / "data" / "cifar10")],
    ):
        assert main(["prep", *words, "--quiet", "--workers", "1"]) == 0
    return folder


@pytest.fixture
def fastpeer(workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in the workshop: one text, and further words that are not split."""
    monkeypatch.chdir(workshop)

    def run(line: str, *words: object) -> Outcome:
        capsys.readouterr()
        code = main([*shlex.split(line), *map(str, words)])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="package")
def original(workshop: Path) -> Path:
    """A finished run; not to be changed."""
    run = workshop / "original"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        assert main(["train", "tiny.toml", "--out", str(run), "--quiet"]) == 0
    return run


@pytest.fixture(scope="package")
def stopped(workshop: Path) -> Path:
    """The tiny run, stopped at step 7, in mid-epoch and off the log's grid; not to be changed."""
    run = workshop / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        assert main(["train", "tiny.toml", "--train.max-steps", "7", "--quiet", "--out", str(run)]) == 0
    return run


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(original, tmp_path / "finished", symlinks=True))
