"""The examples in docs/python.md run as they stand there, one after the other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")


def test_the_guides_examples_run(
    fastpeer, original: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(original)
    (tmp_path / "data" / "mine").symlink_to(workshop / "data" / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    fastpeer("export runs/mine --formats safetensors,pytorch --to exported").succeeded()
    names: dict[str, object] = {}
    try:
        for example in re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
            exec(example, names)
    finally:
        sys.modules.pop("network", None)
    assert set(names["results"]) == {"clean", "pgd10"}
