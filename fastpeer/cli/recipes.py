"""`fastpeer recipes`: what can be trained by name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.config.recipes import DEFAULT_RECIPE, ListedRecipe, list_recipes
from fastpeer.errors import UserError
from fastpeer.suggestions import nearest

NO_ROW = "without figures in PeerAiD's paper"


@dataclass(frozen=True, kw_only=True)
class RecipesArguments:
    """List the shipped recipes, by the paper's tables, with the accuracies in % that it reports."""

    words: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[WORD ...]", help_behavior_hint="(default: all recipes)")
    ] = ()
    """Only recipes whose name holds all these words, such as: trades cifar10."""


def recipes_command(words: Sequence[str]) -> None:
    """Print the shipped recipes with what the paper reports for them.

    Raises:
        UserError: no recipe's name holds all the words.
    """
    recipes = _holding(parse(RecipesArguments, words, "fastpeer recipes").words)
    console = Console()
    console.print("shipped recipes, and the accuracies in % that PeerAiD's paper reports for them")
    width = max(len(_label(recipe)) for recipe in recipes)
    for section, members in groupby(sorted(recipes, key=_order), key=_section):
        console.print()
        console.print(_table(section, members, width))
    if any(recipe.name == "demo" for recipe in recipes):
        console.print("demo: handwritten digits, in a few minutes on a CPU; no data set of the paper's")


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
            raise UserError(f"no recipe's name holds {word}; did you mean {nearest(word, sorted(known))}?")
        found = [recipe for recipe in found if recipe.name in names]
    if not found:
        near = nearest("-".join(words), [recipe.name for recipe in every])
        raise UserError(f"no recipe's name holds all of {', '.join(words)}; the nearest is {near}")
    return found


def _parts(recipe: ListedRecipe) -> str:
    return f"-{recipe.name}-{recipe.method}-"


def _section(recipe: ListedRecipe) -> str:
    """Name the part of a table: what stands before the method in a row's name."""
    return recipe.paper.row.rpartition(", ")[0] if recipe.paper else NO_ROW


def _order(recipe: ListedRecipe) -> tuple[bool, str, str]:
    return recipe.paper is None, _section(recipe), recipe.name


def _table(section: str, recipes: Iterable[ListedRecipe], width: int) -> Table:
    table = Table(title=section, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True, min_width=width)
    table.add_column("method", no_wrap=True, min_width=len("peeraid"))
    for heading in ("clean", "FGSM", "PGD-20", "AA"):
        table.add_column(heading, justify="right", min_width=5)
    for recipe in recipes:
        paper = recipe.paper
        figures = (paper.clean, paper.fgsm, paper.pgd20, paper.aa) if paper else ()
        table.add_row(_label(recipe), recipe.method, *(f"{figure:.2f}" for figure in figures))
    return table


def _label(recipe: ListedRecipe) -> str:
    return f"{recipe.name} (default)" if recipe.name == DEFAULT_RECIPE else recipe.name
