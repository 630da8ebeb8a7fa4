"""Recipes: a training's settings as TOML, shipped by name or written by hand."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fastpeer.config import Config, PaperConfig
from fastpeer.config.toml import read_table, structure
from fastpeer.errors import UserError, one_line
from fastpeer.methods import default_loss
from fastpeer.suggestions import nearest

DEFAULT_RECIPE = "tiny-resnet18"


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
    return sorted(_Shipped().files)


def list_recipes() -> list[ListedRecipe]:
    """Return the shipped recipes by name, without making a `Config` of each."""
    shipped = _Shipped()
    return [_listed(name, shipped.table(name)) for name in sorted(shipped.files)]


def load_recipe(recipe: str) -> Config:
    """Read a shipped recipe by name, or any TOML file by path; what it leaves out is default.

    Raises:
        UserError: no such recipe, not TOML, an unknown key or a value that does not fit.
    """
    shipped = _Shipped()
    if recipe in shipped.files:
        return structure(shipped.table(recipe), recipe)
    path = Path(recipe)
    near = nearest(recipe, shipped.files)
    if path.is_dir():
        raise UserError(f"{recipe} is a folder: a recipe is a TOML file or {near}")
    if not path.is_file():
        raise UserError(f"no recipe {recipe}: there is no such file; the nearest of those shipped is {near}")
    try:
        # Some editors begin a file with a byte-order mark.
        return parse_recipe(path.read_text("utf-8-sig"), recipe)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: cannot be read as text ({one_line(error)})") from None


def recipe_of_method(recipe: str, method: str) -> Config:
    """Read a recipe, but for another method.

    Where a recipe of that method is shipped for the same data and network, it is that one; else the method's
    own loss takes the place of the recipe's, and all else stays.
    """
    config = load_recipe(recipe)
    if method == config.method:
        return config
    names = recipe_names()
    siblings = _siblings(recipe, config.method, method) if recipe in names else ()
    found = next((sibling for sibling in siblings if sibling in names), None)
    if found is not None:
        return load_recipe(found)
    return replace(config, method=method, loss=default_loss(method), paper=None)


def _siblings(recipe: str, method: str, other: str) -> Iterator[str]:
    """Name what a shipped recipe may be called for another method, the most alike first."""
    family = "-".join(recipe.split("-")[:2])
    own, new = (f"-{name}" if name != Config.method else "" for name in (method, other))
    rest = recipe.removeprefix(family).removeprefix(own)
    for ending in (rest, rest.replace("-peer", "-teacher"), rest.replace("-teacher", "-peer"), ""):
        yield f"{family}{new}{ending}"


def parse_recipe(text: str, name: str) -> Config:
    """Turn TOML into a `Config`; `name` is what errors call it.

    Raises:
        UserError: not TOML, an unknown key or a value that does not fit.
    """
    return structure(_inherited(read_table(text, name), name, _Shipped()), name)


class _Shipped:
    """The shipped recipes, in a folder for each data set; each file is read once at most."""

    def __init__(self) -> None:
        folders = [one for one in resources.files("fastpeer.recipes").iterdir() if one.is_dir()]
        files = (file for folder in folders for file in folder.iterdir())
        self.files = {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}
        self._tables: dict[str, dict[str, Any]] = {}

    def table(self, name: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return a recipe's settings, with those of the recipe that it is like."""
        if name not in self._tables:
            own = read_table(self.files[name].read_text("utf-8"), name)
            self._tables[name] = _inherited(own, name, self, children)
        return self._tables[name]


def _inherited(
    table: dict[str, Any], name: str, shipped: _Shipped, children: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Follow `like = RECIPE`: what a table leaves out is as in that shipped recipe.

    The paper's figures are its own, and so is the loss where the method is another.
    """
    if "like" not in table:
        return table
    like, lineage = table["like"], (*children, name)
    if not isinstance(like, str) or like not in shipped.files or like in lineage:
        near = nearest(str(like), [known for known in shipped.files if known not in lineage])
        raise UserError(f"{name}: like needs a shipped recipe, such as {near}, not {like!r}")
    parent = shipped.table(like, lineage)
    method = parent.get("method", Config.method)
    dropped = ("paper",) if table.get("method", method) == method else ("paper", "loss")
    kept = {key: value for key, value in parent.items() if key not in dropped}
    return _merged(kept, {key: value for key, value in table.items() if key != "like"})


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Return the child's settings, and the parent's where the child has none."""
    merged = {**parent, **child}
    for name in parent.keys() & child.keys():
        if isinstance(parent[name], dict) and isinstance(child[name], dict):
            merged[name] = _merged(parent[name], child[name])
    return merged


def _listed(name: str, table: dict[str, Any]) -> ListedRecipe:
    figures = table.get("paper")
    paper = PaperConfig(**figures) if figures is not None else None
    return ListedRecipe(name, table.get("method", Config.method), paper)
