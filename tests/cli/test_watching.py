"""How far an attack is: whole on terminals of any width, and a line now and then in a pipe."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fastpeer.cli import watching
from fastpeer.cli.watching import _AttackBar, watch_on

WHAT = "cifar10-resnet18-peeraid best-swa: aa"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_terminal_cuts_the_count_or_the_attack(width: int) -> None:
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    bar = _AttackBar(console, WHAT, 10000)
    bar.show(512, "apgd-ce")
    console.print(bar.get_renderable())
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert " ".join(f"{WHAT}, apgd-ce".split()) in " ".join(shown.split())
    assert "512/10000" in shown


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    with watch_on(Console(file=file, width=40))(WHAT, 1000) as progress:
        progress(0, "apgd-ce")
        monkeypatch.setattr(watching, "LINE_SECONDS", 0.0)
        progress(500, "fab-t")
        progress(1000)
    assert file.getvalue() == f"{WHAT}, fab-t: 500 of 1000 images\n"


def test_a_quick_attack_leaves_a_pipe_to_the_table() -> None:
    file = StringIO()
    with watch_on(Console(file=file))(WHAT, 1000) as progress:
        for done in range(1001):
            progress(done)
    assert file.getvalue() == ""
