"""Versions of packages, also of those that were copied rather than installed."""

from importlib.metadata import PackageNotFoundError, version

import pytest

import fastpeer
from fastpeer.versions import version_of


def test_an_installed_package_has_its_version():
    assert version_of("numpy") == version("numpy")


def test_a_package_without_metadata_has_none(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert version_of("ffcv") is None
    assert version_of("fastpeer") == fastpeer.__version__
