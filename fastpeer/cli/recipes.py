"""`fastpeer recipes`: what can be trained by name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.config.recipes import DEFAULT_RECIPE, ListedRecipe, list_recipes
from fastpeer.errors import UserError
from fastpeer.printing import FigureTable, Row
from fastpeer.suggestions import did_you_mean
from fastpeer.table_formats import TableFormat, report_in

NO_ROW = "without figures in PeerAiD's paper"


@dataclass(frozen=True, kw_only=True)
class RecipesArguments:
    """List the shipped recipes, with the paper's accuracies in %."""

    words: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[WORD ...]", help_behavior_hint="(default: all recipes)")
    ] = ()
    """Only recipes whose name holds all these words, such as: trades cifar10."""
    format: TableFormat = "text"
    """Of the table: text, csv, json, latex (booktabs) or markdown."""


def recipes_command(words: Sequence[str]) -> None:
    """Print the shipped recipes with what the paper reports for them.

    Raises:
        UserError: no recipe's name holds all the words.
    """
    arguments = parse(RecipesArguments, words, "fastpeer recipes")
    recipes, report = _holding(arguments.words), report_in(arguments.format, Console())
    sections = groupby(sorted(recipes, key=_order), key=_section)
    tables = [_table(section, members) for section, members in sections]
    title = "shipped recipes, and the accuracies in % that PeerAiD's paper reports for them"
    report.tables(title, tables, boxed=False)
    if any(recipe.name == "demo" for recipe in recipes):
        report.note("demo: handwritten digits, in a few minutes on a CPU; no data set of the paper's")
    report.end()


def _holding(words: Sequence[str]) -> list[ListedRecipe]:
    """Return the recipes whose name or method holds every word.

    A word that some name has as a part of its own, between hyphens, means that: cifar10 is not cifar100.
    """
    every = list_recipes()
    found = every
    for word in words:
        whole = {recipe.name for recipe in every if f"-{word}-" in _parts(recipe)}
        names = whole or {recipe.name for recipe in every if word in _parts(recipe)}
        if not names:
            known = {part for recipe in every for part in recipe.name.split("-")} | {r.method for r in every}
            near = did_you_mean(word, sorted(known), "fastpeer recipes lists all")
            raise UserError(f"no recipe's name holds {word}; {near}")
        found = [recipe for recipe in found if recipe.name in names]
    if not found:
        near = did_you_mean("-".join(words), [recipe.name for recipe in every], "fastpeer recipes lists all")
        raise UserError(f"no recipe's name holds all of {', '.join(words)}; {near}")
    return found


def _parts(recipe: ListedRecipe) -> str:
    return f"-{recipe.name}-{recipe.method}-"


def _section(recipe: ListedRecipe) -> str:
    """Name the part of a table: what stands before the method in a row's name."""
    return recipe.paper.row.rpartition(", ")[0] if recipe.paper else NO_ROW


def _order(recipe: ListedRecipe) -> tuple[bool, str, str]:
    return recipe.paper is None, _section(recipe), recipe.name


def _table(section: str, recipes: Iterable[ListedRecipe]) -> FigureTable:
    headings = ("recipe", "method", "clean", "FGSM", "PGD-20", "AA")
    return FigureTable(headings, [[_row(recipe) for recipe in recipes]], section)


def _row(recipe: ListedRecipe) -> Row:
    paper = recipe.paper
    figures = (paper.clean, paper.fgsm, paper.pgd20, paper.aa) if paper else ()
    texts = [f"{figure:.2f}" for figure in figures] or [""] * 4
    return Row(_label(recipe), (recipe.method, *texts))


def _label(recipe: ListedRecipe) -> str:
    return f"{recipe.name} (default)" if recipe.name == DEFAULT_RECIPE else recipe.name
