"""What is built for installation holds the whole package."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('out'); build_wheel('out')"
FOLDERS = {"fastpeer": "fastpeer", "kernels": "fastpeer/kernels", "data_prep": "fastpeer/data_prep"}
"""Folders of the tree, and where they are in an installation."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist and the wheel of a copy of the tree: setuptools leaves files behind."""
    folder = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True)
    return folder / "out"


def package_files(places):
    """All files of the package, by their names in an archive."""
    return {
        f"{places[folder]}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_wheel_holds_every_file_of_the_package_and_no_other(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files(FOLDERS)
    expected = ("py.typed", "recipes/demo.toml", "step/measured.json", "kernels/fused/pgd_update.py")
    assert {f"fastpeer/{name}" for name in expected} <= names


def test_sdist_holds_every_file_of_the_package(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files({folder: folder for folder in FOLDERS}) | {"pyproject.toml", "LICENSE"} <= names


def test_ffcv_is_asked_for_on_linux_alone(built):
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    assert 'Requires-Dist: ffcv>=1.0.2; platform_system == "Linux"' in lines
    assert "Requires-Dist: torch>=2.8" in lines
