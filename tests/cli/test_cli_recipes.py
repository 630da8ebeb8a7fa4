"""`fastpeer recipes`: what it lists, and what it refuses."""

from __future__ import annotations

import re

import pytest

from fastpeer.config.recipes import list_recipes, recipe_names


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def listed(shown: str) -> list[str]:
    """First words of the lines that are recipes."""
    firsts = [line.split()[0] for line in shown.splitlines() if line.strip()]
    return [first for first in firsts if first in recipe_names()]


def test_all_recipes_with_their_figures_by_table(fastpeer) -> None:
    outcome = fastpeer("recipes").succeeded()
    assert sorted(listed(outcome.out)) == recipe_names()
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["cifar10-resnet18-trades", "trades", "81.47", "57.75", "52.92", "49.35"] in lines
    assert ["cifar10-resnet18-mtard", "mtard"] in lines
    assert ["tiny-resnet18", "(default)", "peeraid", "55.19", "29.42", "26.10", "21.67"] in lines
    titles = [line.strip() for line in outcome.out.splitlines() if line.startswith("Table ")]
    assert titles == sorted(titles)
    assert {title.split(",")[0] for title in titles} == {"Table 1", "Table 3", "Table 4", "Table 5"}
    assert len(titles) == len(set(titles)) == 9


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("trades cifar10", ["cifar10-mobilenetv2-trades", "cifar10-resnet18-trades",
                            "cifar10-wideresnet34x10-trades"]),
        ("cifar10 trades resnet18", ["cifar10-resnet18-trades"]),
        ("iad-ii", ["cifar10-resnet18-iad-ii", "cifar100-resnet18-iad-ii"]),
        ("peeraid tiny", ["tiny-resnet18", "tiny-resnet18-without-swa", "tiny-wideresnet34x10"]),
        ("wideres tiny trades", ["tiny-wideresnet34x10-trades"]),
        ("demo", ["demo"]),
    ],
)  # fmt: skip
def test_words_choose(fastpeer, words: str, names: list[str]) -> None:
    assert sorted(listed(fastpeer(f"recipes {words}").succeeded().out)) == names


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_terminal_cuts_names_or_figures(fastpeer, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    # A terminal as far as rich can tell, without colours.
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("LINES", "24"), ("COLUMNS", str(columns))):
        monkeypatch.setenv(name, value)
    shown = fastpeer("recipes").succeeded().out
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    assert sorted(listed(shown)) == recipe_names()
    papers = [recipe.paper for recipe in list_recipes() if recipe.paper]
    figures = [figure for paper in papers for figure in (paper.clean, paper.fgsm, paper.pgd20, paper.aa)]
    assert sorted(re.findall(r"\d+\.\d\d", shown)) == sorted(f"{figure:.2f}" for figure in figures)


def test_a_pipe_has_no_width(fastpeer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fastpeer("recipes").succeeded().out
    monkeypatch.setenv("COLUMNS", "40")
    assert fastpeer("recipes").succeeded().out == whole


def test_what_no_recipe_holds_is_refused_in_a_short_line(fastpeer) -> None:
    assert len(fastpeer("recipes trads").refused("trads", "trades")) < 200
    assert len(fastpeer("recipes qqqq").refused("qqqq")) < 200
    assert len(fastpeer("recipes mtard tiny").refused("mtard, tiny")) < 200
    fastpeer("recipes --trades").refused("--trades")


def test_help(fastpeer) -> None:
    assert "WORD" in fastpeer("recipes --help").succeeded().out
