"""Recipes: a training's settings as TOML, shipped by name or written by hand."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import cattrs
import tomli_w
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from fastpeer.config import Config, PaperConfig, PixelDistance, format_fraction, parse_fraction
from fastpeer.errors import UserError, one_line
from fastpeer.methods import LossSettings, default_loss, loss_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_RECIPE = "tiny-resnet18"
FEW = 12
"""So many names fit into an error's line."""
INCIDENTAL = (
    "seed", "precision", "log.", "engine.", "data.dataset", "data.residency",
    "teacher.weights", "natural_teacher.weights",
)  # fmt: skip
"""Settings, or the beginnings of their names, that make no run depart from its recipe."""


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
        return _config(shipped.table(recipe), recipe)
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
    return _config(_inherited(_table(text, name), name, _Shipped()), name)


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
            own = _table(self.files[name].read_text("utf-8"), name)
            self._tables[name] = _inherited(own, name, self, children)
        return self._tables[name]


def _table(text: str, name: str) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not TOML: {one_line(error)}") from None
    return table


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


def _config(table: dict[str, Any], name: str) -> Config:
    method = table.get("method", Config.method)
    if not isinstance(method, str):
        raise UserError(f"{name}: method: needs a text in quotes, not {method!r}")
    try:
        converter = _converter(method)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    try:
        return converter.structure(table, Config)
    except ClassValidationError as error:
        path, cause = next(_causes(error, ()))
        raise UserError(f"{name}: {_explain(path, cause, method)}") from None


def _listed(name: str, table: dict[str, Any]) -> ListedRecipe:
    figures = table.get("paper")
    paper = PaperConfig(**figures) if figures is not None else None
    return ListedRecipe(name, table.get("method", Config.method), paper)


def dump_recipe(config: Config) -> str:
    """Write a `Config` as TOML that `parse_recipe` reads back to the same settings, bit for bit."""
    table = _converter(config.method).unstructure(config)
    if config.paper is None:
        del table["paper"]
    return tomli_w.dumps(table)


def setting_names(config_class: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings, such as `attack.steps`, but for those of a method's own."""
    names: list[str] = []
    for entry in fields(config_class):
        nested = entry.type if is_dataclass(entry.type) else None
        dotted = prefix + entry.name
        names += setting_names(nested, f"{dotted}.") if isinstance(nested, type) else [dotted]
    return names


def differences(config: Config, other: Config) -> dict[str, tuple[object, object]]:
    """Return the settings that differ, by dotted name, with both values; the paper's figures are none."""
    ours, theirs = _flat(asdict(config)), _flat(asdict(other))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return {name: (ours.get(name), theirs.get(name)) for name in names}


def other_settings(config: Config) -> list[str]:
    """Name the settings in which a run departs from the shipped recipe whose paper row it bears.

    Seed, number format, logging, the data set's name and where teachers lie do not count, nor does what
    leaves the result as it is.
    """
    origin = next((entry.name for entry in list_recipes() if _same_row(entry.paper, config.paper)), None)
    if origin is None:
        return []
    names = differences(config, load_recipe(origin))
    return [name for name in names if not name.startswith(INCIDENTAL)]


def _same_row(paper: PaperConfig | None, other: PaperConfig | None) -> bool:
    """Compare the figures: no two rows share them, and what a row is called may change."""
    return paper is not None and other is not None and replace(paper, row=other.row) == other


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name == "paper":
            continue
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the valid words most like `word`; where none is like it, all, if they are few."""
    valid = list(dict.fromkeys(valid))
    named = difflib.get_close_matches(word, valid, n=3, cutoff=0.5) or valid
    if len(named) > FEW:
        named = difflib.get_close_matches(word, valid, n=3, cutoff=0.0)
    return f"one of {', '.join(named)}" if len(named) > 1 else named[0]


def _converter(method: str) -> cattrs.Converter:
    """Strict: no unknown keys, and no value that would have to be bent to fit.

    Raises:
        UserError: there is no such method, whose settings [loss] holds.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _only(kind))
    converter.register_structure_hook_func(lambda t: _made_of(t, tuple), _numbers)
    converter.register_structure_hook_func(lambda t: _made_of(t, Literal), _one_of)
    converter.register_structure_hook_func(
        lambda t: t == PixelDistance, lambda value, _: parse_fraction(value)
    )
    converter.register_unstructure_hook_func(lambda t: t == PixelDistance, format_fraction)
    loss = loss_settings(method)
    converter.register_structure_hook_func(
        lambda t: t is LossSettings, lambda value, _: converter.structure(value, loss)
    )
    converter.register_unstructure_hook_func(
        lambda t: t is LossSettings, lambda value: converter.unstructure(value, loss)
    )
    return converter


def _made_of(setting_type: Any, origin: Any) -> bool:
    return get_origin(setting_type) is origin


def _only(kind: type) -> Callable[[Any, Any], Any]:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}

    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise ValueError(f"needs {words[kind]}, not {value!r}")
        return value

    return structure


def _numbers(value: Any, setting_type: Any) -> tuple[float, ...]:
    whole = get_args(setting_type)[0] is int
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, list) or not all(type(item) in kinds for item in value):
        raise ValueError(f"needs a list of {'whole ' if whole else ''}numbers, not {value!r}")
    return tuple(value) if whole else tuple(float(item) for item in value)


def _one_of(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"needs one of {', '.join(get_args(choices))}, not {value!r}")
    return value


def _causes(error: BaseException, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], BaseException]]:
    """Walk cattrs' nested errors down to what went wrong, with the keys that lead there."""
    if not isinstance(error, (ClassValidationError, IterableValidationError)):
        yield path, error
        return
    for cause in error.exceptions:
        note = next((note for note in getattr(cause, "__notes__", []) if hasattr(note, "name")), None)
        yield from _causes(cause, (*path, str(note.name)) if note is not None else path)


def _explain(path: tuple[str, ...], cause: BaseException, method: str) -> str:
    if isinstance(cause, ForbiddenExtraKeysError):
        return _unknown_key(path, cause, method)
    if isinstance(cause, KeyError):
        return f"{'.'.join(path)}: is missing"
    if isinstance(cause, (TypeError, AttributeError)) and path:
        section = ".".join(path)
        return f"{section}: needs a table of settings, such as [{section}] on a line of its own"
    return f"{'.'.join(path)}: {one_line(cause)}" if path else one_line(cause)


def _unknown_key(path: tuple[str, ...], cause: ForbiddenExtraKeysError, method: str) -> str:
    """Name its namesakes, else the settings most like it, else those of the same section."""
    prefix, name = "".join(f"{part}." for part in path), sorted(cause.extra_fields)[0]
    key = prefix + name
    own = [f"loss.{entry.name}" for entry in fields(loss_settings(method))]
    if prefix == "loss.":
        hint = f"did you mean {nearest(key, own)}?" if own else "it has no settings of its own"
        return f"unknown key {key} of the method {method}; {hint}"
    siblings = [prefix + entry.name for entry in fields(cause.cl)] + ([] if prefix else ["like"])
    every = dict.fromkeys([*siblings, *setting_names(), *own])
    namesakes = [known for known in every if known.endswith(f".{name}")]
    close = difflib.get_close_matches(key, every, n=3, cutoff=0.5)
    return f"unknown key {key}; did you mean {nearest(key, namesakes or close or siblings)}?"
