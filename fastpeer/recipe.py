"""Recipes: a training's settings as TOML, shipped by name or written by hand."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import cattrs
import tomli_w
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from fastpeer.config import Config, PixelDistance, format_fraction, parse_fraction
from fastpeer.errors import UserError, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_RECIPE = "tiny-resnet18"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    files = resources.files("fastpeer.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(recipe: str) -> Config:
    """Read a shipped recipe by name, or any TOML file by path; what it leaves out is default.

    Raises:
        UserError: no such recipe, not TOML, an unknown key or a value that does not fit.
    """
    if recipe in recipe_names():
        text = resources.files("fastpeer.recipes").joinpath(f"{recipe}.toml").read_text("utf-8")
        return parse_recipe(text, recipe)
    path = Path(recipe)
    shipped = nearest(recipe, recipe_names())
    if path.is_dir():
        raise UserError(f"{recipe} is a folder: a recipe is a TOML file or {shipped}")
    if not path.is_file():
        raise UserError(f"no recipe {recipe}: there is no such file, and shipped is {shipped}")
    try:
        # Some editors begin a file with a byte-order mark.
        return parse_recipe(path.read_text("utf-8-sig"), recipe)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: cannot be read as text ({one_line(error)})") from None


def parse_recipe(text: str, name: str) -> Config:
    """Turn TOML into a `Config`; `name` is what errors call it."""
    try:
        return _converter().structure(tomllib.loads(text), Config)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not TOML: {one_line(error)}") from None
    except ClassValidationError as error:
        path, cause = next(_causes(error, ()))
        raise UserError(f"{name}: {_explain(path, cause)}") from None


def dump_recipe(config: Config) -> str:
    """Write a `Config` as TOML that `parse_recipe` reads back to the same settings, bit for bit."""
    table = _converter().unstructure(config)
    if config.paper is None:
        del table["paper"]
    return tomli_w.dumps(table)


def setting_names(config_class: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings, such as `attack.steps`."""
    names: list[str] = []
    for entry in fields(config_class):
        nested = entry.type if is_dataclass(entry.type) else None
        dotted = prefix + entry.name
        names += setting_names(nested, f"{dotted}.") if isinstance(nested, type) else [dotted]
    return names


def differences(config: Config, other: Config) -> dict[str, tuple[object, object]]:
    """Return the settings that differ, by dotted name, with both values; the paper's figures are none."""
    ours, theirs = _flat(asdict(config)), _flat(asdict(other))
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def other_settings(config: Config) -> list[str]:
    """Name the settings in which a run departs from the shipped recipe whose paper row it bears.

    Seed, number format, logging and the data set's name do not count.
    """
    recipes = (load_recipe(name) for name in recipe_names())
    origin = next((recipe for recipe in recipes if recipe.paper == config.paper is not None), None)
    if origin is None:
        return []
    names = differences(config, origin)
    return [name for name in names if not name.startswith(("seed", "precision", "log.", "data.dataset"))]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name == "paper":
            continue
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the valid words most like `word`, or all of them where none is like it."""
    valid = list(dict.fromkeys(valid))
    close = difflib.get_close_matches(word, valid, n=3, cutoff=0.5)
    return f"one of {', '.join(close or valid)}" if len(close or valid) > 1 else (close or valid)[0]


def _converter() -> cattrs.Converter:
    """Strict: no unknown keys, and no value that would have to be bent to fit."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _only(kind))
    converter.register_structure_hook_func(lambda t: _made_of(t, tuple), _whole_numbers)
    converter.register_structure_hook_func(lambda t: _made_of(t, Literal), _one_of)
    converter.register_structure_hook_func(
        lambda t: t == PixelDistance, lambda value, _: parse_fraction(value)
    )
    converter.register_unstructure_hook_func(lambda t: t == PixelDistance, format_fraction)
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


def _whole_numbers(value: Any, _: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError(f"needs a list of whole numbers, not {value!r}")
    return tuple(value)


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


def _explain(path: tuple[str, ...], cause: BaseException) -> str:
    if isinstance(cause, ForbiddenExtraKeysError):
        prefix = "".join(f"{part}." for part in path)
        key = prefix + sorted(cause.extra_fields)[0]
        siblings = [prefix + entry.name for entry in fields(cause.cl)]
        return f"unknown key {key}; did you mean {nearest(key, siblings + setting_names())}?"
    if isinstance(cause, KeyError):
        return f"{'.'.join(path)}: is missing"
    if isinstance(cause, (TypeError, AttributeError)) and path:
        section = ".".join(path)
        return f"{section}: needs a table of settings, such as [{section}] on a line of its own"
    return f"{'.'.join(path)}: {one_line(cause)}"
