"""What a training ends with: whole in a pipe, and on terminals of any width."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fastpeer.cli.summary import NAMES, print_summary
from fastpeer.config import Config
from fastpeer.training.selection import Selection


def shown(width: int, terminal: bool, unmeasured: int = 0) -> str:
    """The summary of all four students; the figures are all different."""
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    parts: Any = SimpleNamespace(indices=range(5000))
    selection = Selection(Config(), parts, parts, True, parts, parts)
    figures = {
        name: {"epoch": 9 + number, "clean": 52.9 + number, selection.robust: 12.34 + number}
        for number, name in enumerate(NAMES)
    }
    print_summary(figures, selection, console, unmeasured)
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_terminal_cuts_names_or_figures(width: int) -> None:
    text = shown(width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in range(len(NAMES)):
        assert f"{52.9 + number:.2f}" in text
        assert f"{12.34 + number:.2f}" in text
    firsts = [line.split("│")[1] for line in text.splitlines() if "│" in line]
    names = "".join(firsts).replace(" ", "")
    assert names == "".join(NAMES.values()).replace(" ", "")


def test_a_pipe_has_no_width() -> None:
    text = shown(40, terminal=False)
    assert text == shown(200, terminal=False)
    first = text.splitlines()[0]
    assert first.startswith("student's clean / pgd10 accuracy")
    assert first.endswith("best by pgd10")
    assert all(name in text for name in NAMES.values())


def test_what_was_trained_after_the_last_evaluation_is_told() -> None:
    told = shown(80, terminal=False, unmeasured=12).splitlines()[-1]
    assert (
        told
        == "last is as it was after epoch 9: checkpoints/last has taken 12 more steps, not evaluated here"
    )


def test_nothing_was_evaluated() -> None:
    file = StringIO()
    nothing: Any = None
    print_summary({}, nothing, Console(file=file))
    assert file.getvalue() == "no epoch was completed, so nothing was evaluated\n"
