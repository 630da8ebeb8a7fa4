"""What may stand behind `fastpeer train` and `eval` on the command line, and how such words are read."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import tyro
from tyro.conf import Positional, arg

from fastpeer.config import Config, PixelDistance, check_normalization, check_pixel_distance
from fastpeer.config.recipes import DEFAULT_RECIPE
from fastpeer.errors import UserError, one_line
from fastpeer.suggestions import nearest

Arguments = TypeVar("Arguments")


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a robust student. Every setting of the recipe is also a flag."""

    recipe: Annotated[
        Positional[str], arg(metavar="RECIPE", help_behavior_hint=f"(default: {DEFAULT_RECIPE})")
    ] = ""
    """Name of a shipped recipe (fastpeer recipes lists them), or a TOML file."""
    folder: Annotated[Path | None, arg(name="data", metavar="DIR")] = None
    """A prepared data set; default: data/NAME, as the recipe names it."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """The run folder; default: runs/RECIPE."""
    amp: bool = False
    """Autocast: bf16 where the device has it, else fp16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    resume: bool = False
    """Go on with the run in --out, from its last checkpoint, with the settings it was started with."""
    force: bool = False
    """Delete the run that --out already holds."""
    init_student: Annotated[Path | None, arg(metavar="FILE")] = None
    """Initial student: .safetensors, or a released .pth.tar."""
    init_peer: Annotated[Path | None, arg(metavar="FILE")] = None
    """Initial peer, likewise."""
    teacher: Annotated[Path | None, arg(metavar="PATH")] = None
    """The robust teacher, of a method that has one: a run, a checkpoint or a file with weights."""
    natural_teacher: Annotated[Path | None, arg(metavar="PATH")] = None
    """The teacher that was trained without an attack, of a method that has two; likewise."""
    quiet: bool = False
    """Print nothing but errors."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Attack finished networks, and hold the accuracies against the paper's."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders, or weight files beside their run's config; default: the newest run in runs/."""
    attacks: str = "clean,fgsm,pgd20"
    """Comma-separated: clean, fgsm, pgdN (N steps), aa (AutoAttack standard)."""
    examples: int = 0
    """Use only this many test images, evenly spread, and print a 95 % interval; 0: all."""
    epsilon: PixelDistance = 8 / 255
    """Radius of the L-infinity ball."""
    step_size: PixelDistance = 2 / 255
    """Step of PGD."""
    checkpoints: str = "all"
    """Comma-separated: last, swa, best, best-swa; all: those that the run holds."""
    folder: Annotated[Path | None, arg(name="data", metavar="DIR")] = None
    """A prepared data set; default: the one the run was trained on."""
    model: str = ""
    """Network of a weight file that lies outside a run folder: a shipped one, timm:NAME or module:Class."""
    mean: tuple[float, ...] = ()
    """Normalisation within the network: 1 or 3 numbers; default: what its run or file says."""
    std: tuple[float, ...] = ()
    """Divides each channel after that."""
    size: int = 0
    """Side of the images, of a data set kept as JPEG; 0: the run's data.size."""
    batch_size: int = 256
    """Images attacked at once."""
    seed: int = 0
    """Of the random starts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: bool = False
    """Print nothing but the table and errors."""

    def __post_init__(self) -> None:
        check_pixel_distance("--epsilon", self.epsilon)
        check_pixel_distance("--step-size", self.step_size)
        check_normalization(self.mean, self.std)
        for name, low in (("batch_size", 1), ("seed", 0), ("examples", 0), ("size", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"--{_hyphens(name)} needs {low} or more, not {getattr(self, name)}")


def parse(
    kind: type[Arguments], words: Sequence[str], prog: str, default: Arguments | None = None
) -> Arguments:
    """Read the words behind a command.

    Raises:
        UserError: an unknown flag (the nearest are named), or a value that does not fit.
        SystemExit: after --help.
    """
    flags = _flags(kind, default)
    words = _spell_out_booleans(words, flags)
    _refuse_unknown(words, flags)
    complaint = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            arguments: Arguments = tyro.cli(kind, prog=prog, args=words, **extra)
            return arguments
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_unbox(complaint.getvalue())) from None
    except ValueError as error:
        raise UserError(one_line(error)) from None


def take_value(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """Return the last value given to a flag, and the words without it.

    Raises:
        UserError: the flag has no value.
    """
    value, left, rest = None, [], iter(chain.from_iterable(_at_equals(word) for word in words))
    for word in rest:
        if word != flag:
            left.append(word)
            continue
        value = next(rest, None)
        if value is None:
            raise UserError(f"{flag} needs a value")
    return value, left


def without_section(words: Sequence[str], section: str, switches: Sequence[str]) -> list[str]:
    """Return the words without the flags `--SECTION.NAME` and their values; `switches` have none."""
    left: list[str] = []
    rest = iter(chain.from_iterable(_at_equals(word) for word in words))
    for word in rest:
        if not word.startswith(f"--{section}."):
            left.append(word)
        else:
            switch = _hyphens(word).rpartition(".")[2].removeprefix("no-") in switches
            value = next(rest, "")
            belongs = value.lower() in ("true", "false") if switch else not value.startswith("--")
            # What is wrong with the settings shows when all of them are read.
            left += [] if belongs or not value else [value]
    return left


def _flags(kind: type, default: object = None, prefix: str = "") -> dict[str, bool]:
    """All flags below a dataclass, spelt with hyphens; True where it is a switch.

    Where a default is of a class derived from the one that is declared, its flags count.
    """
    flags: dict[str, bool] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, marks = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
        if tyro.conf.Suppress in marks or tyro.conf.Positional in marks:
            continue
        renamed = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), name)
        dotted = (prefix + renamed).replace("_", "-")
        if is_dataclass(plain):
            value = getattr(default, name, None)
            actual = cast(type, plain) if value is None else type(value)
            flags |= _flags(actual, value, f"{dotted}." if dotted else "")
        else:
            flags[f"--{dotted}"] = plain is bool
    return flags


def _spell_out_booleans(words: Sequence[str], flags: dict[str, bool]) -> list[str]:
    """Turn `--data.augment false` and `--data.augment=false` into `--data.no-augment`."""
    spelt: list[str] = []
    for word in chain.from_iterable(_at_equals(word) for word in words):
        value = word.lower()
        if value in ("true", "false") and spelt and flags.get(_hyphens(spelt[-1])):
            spelt[-1] = spelt[-1] if value == "true" else _negated(_hyphens(spelt[-1]))
        else:
            spelt.append(word)
    return spelt


def _at_equals(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _hyphens(flag: str) -> str:
    return flag.replace("_", "-")


def _negated(flag: str) -> str:
    section, _, name = flag.removeprefix("--").rpartition(".")
    return f"--{section}.no-{name}" if section else f"--no-{name}"


def _refuse_unknown(words: Sequence[str], flags: dict[str, bool]) -> None:
    known = {*flags, *(_negated(flag) for flag, switch in flags.items() if switch), "--help"}
    for word in words:
        if word.startswith("--") and _hyphens(word) not in known:
            raise UserError(f"unknown flag {word}; did you mean {nearest(_hyphens(word), known)}?")


def _unbox(complaint: str) -> str:
    """Return what tyro's framed error says, without title, frame, colours and help, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    framed = "╭" in plain
    lines = (line.strip("│| ") for line in plain.splitlines())
    paragraphs = [list(group) for rule, group in groupby(lines, key=_is_rule) if not rule]
    # Where the terminal cannot draw frames, the title is a paragraph of its own.
    body = paragraphs[0 if framed or len(paragraphs) == 1 else 1]
    text = one_line(" ".join(body)).removeprefix("Error parsing ").removeprefix("config.")
    return text.replace("invalid literal for int() with base 10:", "needs a whole number, not")


def _is_rule(line: str) -> bool:
    return line.startswith(("╭", "╰", "───", "---", "+--"))
