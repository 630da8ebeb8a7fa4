"""Recipes: a training's settings as TOML, shipped by name or written by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastpeer.config import Config, PaperConfig
from fastpeer.config.shipped import RecipeName, ShippedRecipes, shipped_recipes
from fastpeer.config.toml import read_table, structure
from fastpeer.errors import UserError, one_line
from fastpeer.methods import default_loss
from fastpeer.suggestions import did_you_mean

DEFAULT_RECIPE = "tiny-resnet18"
LARGEST_RECIPE = 1 << 16
"""Bytes; those that are shipped have 2,000."""


class ListedRecipe(NamedTuple):
    """What a list of the shipped recipes tells of one.

    Attributes:
        name, method: its own, and its method's.
        paper: the paper's figures, if it has the row.
    """

    name: str
    method: str
    paper: PaperConfig | None


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return shipped_recipes().names


def list_recipes() -> list[ListedRecipe]:
    """Return the shipped recipes by name, without making a `Config` of each."""
    shipped = shipped_recipes()
    return [_listed(name, shipped.table(name)) for name in shipped.names]


def load_recipe(recipe: str) -> Config:
    """Read a shipped recipe by name, or any TOML file by path; what it leaves out is default.

    Raises:
        UserError: no such recipe, not TOML, an unknown key or a value that does not fit.
    """
    return _load(recipe, shipped_recipes())


def _load(recipe: str, shipped: ShippedRecipes) -> Config:
    if recipe in shipped.names:
        return structure(shipped.table(recipe), recipe)
    path = Path(recipe)
    if path.is_file():
        return parse_recipe(_file_text(path), recipe)
    near = did_you_mean(path.name, shipped.names, "fastpeer recipes lists those that are shipped")
    what = "is a folder, not a recipe" if path.is_dir() else "is neither a shipped recipe nor a file"
    raise UserError(f"{recipe} {what}; {near}")


def recipe_of_method(recipe: str, method: str | None) -> Config:
    """Read a recipe, but for another method where one is named.

    Where a recipe of that method is shipped for the same data and network, it is that one; else the method's
    own loss takes the place of the recipe's, and all else stays.
    """
    shipped = shipped_recipes()
    config = _load(recipe, shipped)
    if method in (None, config.method):
        return config
    parts = shipped.split(recipe)
    siblings = _siblings(parts._replace(method=method)) if parts is not None else ()
    found = next((sibling for sibling in siblings if sibling in shipped.names), None)
    if found is not None:
        return _load(found, shipped)
    return replace(config, method=method, loss=default_loss(method), paper=None)


def _siblings(name: RecipeName) -> Iterator[str]:
    """Name what a recipe like this may be called, the most alike first."""
    variant = name.variant
    for other in (variant, variant.replace("peer", "teacher"), variant.replace("teacher", "peer"), ""):
        yield str(name._replace(variant=other))


def parse_recipe(text: str, name: str) -> Config:
    """Turn TOML into a `Config`; `name` is what errors call it.

    Raises:
        UserError: not TOML, an unknown key or a value that does not fit.
    """
    return structure(shipped_recipes().complete(read_table(text, name), name), name)


def _file_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_RECIPE:
            raise UserError(f"{path}: too large for a recipe, of at most {LARGEST_RECIPE:,} bytes")
        # Some editors begin a file with a byte-order mark.
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({one_line(error)})") from None


def _listed(name: str, table: dict[str, Any]) -> ListedRecipe:
    figures = table.get("paper")
    paper = PaperConfig(**figures) if figures is not None else None
    return ListedRecipe(name, table.get("method", Config.method), paper)
