"""Tables on terminals of every width: whole, then with broken headings, then figure by figure."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fastpeer.printing import FigureTable, Row, at_the_end_of_every, print_tables

TABLE = FigureTable(("run", "best clean", "test PGD-20"), [[Row("runs/a", ["98.87", "1.00 (!)"])]])


def printed(width: int, table: FigureTable = TABLE) -> list[str]:
    stream = io.StringIO()
    print_tables(Console(file=stream, width=width, force_terminal=True, color_system=None), [table])
    return stream.getvalue().splitlines()


def test_headings_are_broken_before_figures_are_stacked() -> None:
    assert [line.strip("┃ ") for line in printed(41)[1:2]] == ["run    ┃ best clean ┃ test PGD-20"]
    top, broken = printed(33)[1:3]
    assert [cell.strip() for cell in top.strip("┃").split("┃")] == ["", "best", "test"]
    assert [cell.strip() for cell in broken.strip("┃").split("┃")] == ["run", "clean", "PGD-20"]
    assert printed(20) == ["runs/a", "  best clean      98.87", "  test PGD-20  1.00 (!)"]


WORD = st.text("abcX-/", min_size=1, max_size=9)
HEADINGS = st.lists(st.lists(WORD, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=5)


@given(HEADINGS, st.integers(10, 80))
def test_nothing_is_cut_and_no_table_is_wider_than_the_terminal(headings: list[str], width: int) -> None:
    figures = [f"{number}.25" for number in range(len(headings) - 1)]
    lines = printed(width, FigureTable(headings, [[Row("name", figures)]]))
    assert all(figure in "\n".join(lines) for figure in ["name", *figures])
    assert "…" not in "".join(lines)
    if "━" in "".join(lines):
        assert max(map(len, lines)) <= width


def test_every_few_epochs_in_words() -> None:
    assert at_the_end_of_every(1) == "at each epoch's end"
    assert at_the_end_of_every(4) == "at the end of every 4 epochs, and of the last one"
