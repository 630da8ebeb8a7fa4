"""Settings to TOML and back; what does not fit is said in one line."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

import cattrs
import tomli_w
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from fastpeer.config import Config, PixelDistance, format_fraction, parse_fraction
from fastpeer.errors import UserError, one_line
from fastpeer.methods import LossSettings, loss_settings
from fastpeer.suggestions import nearest, similar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_table(text: str, name: str) -> dict[str, Any]:
    """Read TOML; `name` is what errors call it.

    Raises:
        UserError: not TOML.
    """
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not TOML: {one_line(error)}") from None
    return table


def structure(table: dict[str, Any], name: str) -> Config:
    """Turn a table of settings into a `Config`; `name` is what errors call it.

    Raises:
        UserError: an unknown key or a value that does not fit.
    """
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
    close = similar(key, every)
    return f"unknown key {key}; did you mean {nearest(key, namesakes or close or siblings)}?"
