"""Fixtures for tests in several folders."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from benchmarks.harness.engine_log import EngineLog
from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.training import too_good
from tests.data_prep.prep_files import image_files, write_files

settings.register_profile("daily", max_examples=20, deadline=None)
# make soak tries more cases: pytest -m hypothesis --hypothesis-profile soak.
settings.register_profile("soak", max_examples=200, deadline=None)
# On a GPU each case of another shape compiles a kernel; interpreted, each takes a second.
settings.register_profile("brief", max_examples=5, deadline=None)
settings.load_profile("daily")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests of a file in one process (pytest -n N --dist loadgroup): they share slow fixtures.

    The longest files come first, so that no process is left waiting for them at the end.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: on tensors this small, synchronising several costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages that fastpeer logs during a test, from INFO on."""
    with EngineLog() as log:
        yield log.lines


@pytest.fixture
def nothing_logged(logged: list[str], request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs anything, for instance that a part of the engine is not available.

    Its result would then not be of that part. A test that uses `logged` checks the messages itself.
    """
    yield
    assert logged == [] or "logged" in inspect.signature(request.function).parameters


@pytest.fixture(scope="module")
def short_look_for_overfitting() -> Iterator[None]:
    """On images this small it takes as long as the training; tests/training/test_too_good.py has it whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(too_good, "STEPS", 1)
        yield


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set: 5 classes, 45 training and 5 test images of 8×8 pixels."""
    root = tmp_path_factory.mktemp("small")
    source = write_files(root / "images", image_files([f"class{number}" for number in range(5)], per_class=9))
    prepare(PrepOptions(dataset="folder", source=source, out=root / "data", workers=1))
    return root / "data"
