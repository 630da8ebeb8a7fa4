from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prep_files import image_files, write_files
from prep_traces import leftovers, remaining, shared_memory, writer_processes

from fastpeer.data_prep import PrepOptions, prepare


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[None]:
    """Require that the test leaves no partial folder, no process and no shared memory."""
    before = shared_memory()
    yield
    assert leftovers(tmp_path) == []
    assert writer_processes(str(tmp_path)) == []
    assert not remaining(shared_memory() - before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 130 PNGs in two classes."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    return write_files(
        root, image_files(["cat", "Dog"], 64) | {"train/cat/.DS_Store": b"x", "README.txt": b"x"}
    )


@pytest.fixture(scope="session")
def prepared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, prepared by one worker."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(PrepOptions(dataset="folder", source=photos, out=out, workers=1))
    return out
