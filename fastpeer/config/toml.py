"""Tables of settings, as TOML or from flags, to dataclasses and back; what does not fit is one line."""

import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
import tomli_w
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from fastpeer.config import Config, PixelDistance, format_fraction, parse_fraction
from fastpeer.errors import UserError, one_line, shown
from fastpeer.methods import LossSettings, loss_settings
from fastpeer.suggestions import did_you_mean, similar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
MOST_DOTS = 200
"""In a line: a key of n parts takes tomllib a time that grows with the square of n."""
MOST = 1 << 63
"""What whole numbers are below."""


def read_table(text: str, name: str) -> dict[str, Any]:
    """Read TOML; `name` is what errors call it.

    Raises:
        UserError: not TOML.
    """
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise UserError(f"{name}: a line holds more than {MOST_DOTS} dots")
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{name}: not TOML: nested too deeply") from None
    except ValueError as error:  # Of numbers and dates, too.
        raise UserError(f"{name}: not TOML: {one_line(error)}") from None
    return table


def structure(table: dict[str, Any], name: str) -> Config:
    """Turn a table of settings into a `Config`; `name` is what errors call it.

    Raises:
        UserError: an unknown key or a value that does not fit.
    """
    method = table.get("method", Config.method)
    if not isinstance(method, str):
        raise UserError(f"{name}: method must be a text in quotes, got {shown(method)}")
    try:
        return fit(_with_log_to(table), Config, method)
    except UserError as error:
        raise type(error)(f"{name}: {error}") from None


def _with_log_to(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with log.to in place of log.tensorboard, which older runs and recipes have."""
    log = table.get("log")
    if not isinstance(log, dict) or "tensorboard" not in log:
        return table
    kept = {name: value for name, value in log.items() if name != "tensorboard"}
    if type(log["tensorboard"]) is not bool:
        raise UserError(f"log.tensorboard must be true or false, got {shown(log['tensorboard'])}")
    others = [name for name in kept.get("to", ()) if name != "tensorboard"]
    return {**table, "log": {**kept, "to": ["tensorboard", *others] if log["tensorboard"] else others}}


def fit(table: dict[str, Any], kind: type[T], method: str, spell: Callable[[str], str] = str) -> T:
    """Turn a table of values into a dataclass, without bending any of them.

    Args:
        table: values by name; those of a nested dataclass are a table or an instance of it.
        kind: the dataclass.
        method: whose settings [loss] holds.
        spell: how errors write a dotted name such as attack.steps.

    Raises:
        UserError: an unknown key or a value that does not fit.
    """
    converter = _converter(method)
    try:
        return converter.structure(converter.unstructure(table), kind)
    except ClassValidationError as error:
        raise UserError(_explain(*_cause(error), method, spell)) from None
    except RecursionError:
        raise UserError("a value is nested too deeply") from None


def dump_recipe(config: Config) -> str:
    """Write a `Config` as TOML that `parse_recipe` reads back to the same settings, bit for bit."""
    table = _converter(config.method).unstructure(config)
    if config.paper is None:
        del table["paper"]
    return tomli_w.dumps(table)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by their dotted names; without the paper's figures."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name == "paper":
            continue
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return values


def setting_names() -> list[str]:
    """Dotted names of all settings, such as `attack.steps`, but for those of a method's own."""
    return [name for name in flat(asdict(Config())) if not name.startswith("loss.")]


def _converter(method: str) -> cattrs.Converter:
    """Return the converter of a method's settings.

    Raises:
        UserError: there is no such method, whose settings [loss] holds.
    """
    # Asked each time: whether a method of the user's may be imported depends on the command line.
    loss: Any = loss_settings(method)
    return _converter_with(loss)


@cache
def _converter_with(loss: type) -> cattrs.Converter:
    """Return a strict one: no unknown keys, and no value that would have to be bent to fit.

    cattrs writes and compiles a function for each dataclass; a command reads a run's settings several times.

    Args:
        loss: what [loss] holds, as `loss_settings` returns it.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _only(kind))
    converter.register_structure_hook_func(
        lambda t: _made_of(t, tuple) and get_args(t)[0] in (int, float), _numbers
    )
    converter.register_structure_hook_func(lambda t: t == tuple[str, ...], _texts)
    converter.register_structure_hook_func(lambda t: _made_of(t, Literal), _one_of)
    converter.register_structure_hook_func(
        lambda t: _made_of(t, tuple) and _made_of(get_args(t)[0], Literal), _some_of
    )
    converter.register_structure_hook_func(
        lambda t: t == PixelDistance, lambda value, _: parse_fraction(value)
    )
    converter.register_unstructure_hook_func(lambda t: t == PixelDistance, format_fraction)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(
        lambda t: t is LossSettings, lambda value, _: converter.structure(value, loss)
    )
    converter.register_unstructure_hook_func(
        lambda t: t is LossSettings, lambda value: converter.unstructure(value, loss)
    )
    return converter


def _made_of(setting_type: Any, origin: Any) -> bool:
    return get_origin(setting_type) is origin


def _only(kind: Any) -> Callable[[Any, Any], Any]:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}

    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise ValueError(f"must be {words[kind]}, got {shown(value)}")
        if kind is int and abs(value) >= MOST:
            raise ValueError(f"must be less than 2^63, got {shown(value)}")
        if kind is str and "\0" in value:
            raise ValueError(f"must hold no zero, got {shown(value)}")
        return value

    return structure


def _path(value: Any, _: Any) -> Path:
    if not value:
        raise ValueError("must be a path, got an empty text")
    if "\0" in str(value):
        raise ValueError(f"must hold no zero, got {shown(value)}")
    return Path(value)


def _numbers(value: Any, setting_type: Any) -> tuple[float, ...]:
    whole = get_args(setting_type)[0] is int
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, (list, tuple)) or not all(type(item) in kinds for item in value):
        raise ValueError(f"must be a list of {'whole ' if whole else ''}numbers, got {shown(value)}")
    if any(isinstance(item, int) and abs(item) >= MOST for item in value):
        raise ValueError(f"must be less than 2^63, got {shown(value)}")
    return tuple(value) if whole else tuple(float(item) for item in value)


def _texts(value: Any, _: Any) -> tuple[str, ...]:
    # A text is a sequence of letters, too.
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of texts in quotes, got {shown(value)}")
    return tuple(value)


def _one_of(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"must be one of {', '.join(get_args(choices))}, got {shown(value)}")
    return value


def _some_of(values: Any, setting_type: Any) -> tuple[Any, ...]:
    choices = get_args(get_args(setting_type)[0])
    wrong = (
        [value for value in values if value not in choices] if isinstance(values, (list, tuple)) else [values]
    )
    if wrong:
        raise ValueError(f"must be a list of {', '.join(choices)}, got {shown(wrong[0])}")
    return tuple(values)


def _cause(error: BaseException, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], BaseException]:
    """Walk cattrs' nested errors down to the first thing wrong, with the keys that lead there."""
    if not isinstance(error, (ClassValidationError, IterableValidationError)):
        return path, error
    cause = error.exceptions[0]
    note = _note(cause)
    return _cause(cause, path if note is None else (*path, str(note.name)))


def _note(error: BaseException) -> Any:
    """Return where cattrs met an error; None where a dataclass's own check raised it."""
    return next((note for note in getattr(error, "__notes__", []) if hasattr(note, "name")), None)


def _explain(path: tuple[str, ...], cause: BaseException, method: str, spell: Callable[[str], str]) -> str:
    key, text = ".".join(path), one_line(cause)
    if isinstance(cause, ForbiddenExtraKeysError):
        return _unknown_key(path, cause, method)
    if isinstance(cause, KeyError):
        return f"{spell(key)} is missing"
    if isinstance(cause, (TypeError, AttributeError)) and path:
        return f"{spell(key)} must be a table of settings, such as [{key}] on a line of its own"
    if _note(cause) is None:
        # A dataclass's own check begins with the name of its field.
        name, _, text = text.partition(" ")
        key = ".".join((*path, name))
    return f"{spell(key)} {text}"


def _unknown_key(path: tuple[str, ...], cause: ForbiddenExtraKeysError, method: str) -> str:
    """Name its namesakes, else the settings most like it, else those of the same section."""
    prefix, name = "".join(f"{part}." for part in path), sorted(cause.extra_fields)[0]
    key = prefix + name
    own = [f"loss.{entry.name}" for entry in fields(loss_settings(method))]
    if prefix == "loss.":
        hint = did_you_mean(key, own) if own else "it has no settings of its own"
        return f"unknown key {key} of the method {method}; {hint}"
    siblings = [prefix + entry.name for entry in fields(cause.cl)] + ([] if prefix else ["like"])
    every = dict.fromkeys([*siblings, *setting_names(), *own])
    namesakes = [known for known in every if known.endswith(f".{name}")]
    close = similar(key, every)
    return f"unknown key {key}; {did_you_mean(key, namesakes or close or siblings)}"
