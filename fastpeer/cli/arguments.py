"""What may stand behind `fastpeer train` and `eval` on the command line, and how such words are read."""

import contextlib
import io
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from tyro.conf import Positional, Suppress, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from fastpeer.config import (
    AutoAttackWay,
    Config,
    Norm,
    PixelDistance,
    check_at_least,
    check_batch_size,
    check_distances,
    check_normalization,
    parse_radii,
)
from fastpeer.config.toml import fit, flat
from fastpeer.errors import UserError, printable
from fastpeer.models.pixel_range import check_pixel_range
from fastpeer.suggestions import did_you_mean
from fastpeer.table_formats import TableFormat

BOOLEANS = ("true", "false")
LISTS = ("--attacks", "--checkpoints", "--curve", "--formats")
"""Flags whose values are separated by commas, not by spaces."""
Arguments = TypeVar("Arguments")


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a robust student; every setting is also a flag."""

    recipe: Annotated[Positional[str], arg(metavar="[RECIPE]")] = ""
    """Name of a shipped recipe (fastpeer recipes lists them), or a TOML file; default: tiny-resnet18."""
    data: Annotated[Path | None, arg(metavar="DIR")] = None
    """A prepared data set; default: data/NAME, as the recipe names it."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """The run folder; default: runs/RECIPE, with --resume the newest run of RECIPE in runs/."""
    amp: bool = False
    """Autocast: bf16 where the device has it, else fp16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    resume: bool = False
    """Go on with the run in --out, from its last checkpoint, with the settings it was started with."""
    force: bool = False
    """Delete the run that --out already holds."""
    force_settings: bool = False
    """With --resume: go on although config.toml was edited since the last checkpoint."""
    trust: bool = False
    """Import what files name, such as a run's own class or method; otherwise only what this line names. It
    runs code: know whose it is."""
    dry_run: bool = False
    """Print what would be done; take a few steps to estimate time and memory; write nothing and stop."""
    init_student: Annotated[Path | None, arg(metavar="FILE")] = None
    """Initial student: .safetensors, or a PyTorch checkpoint such as a released .pth.tar."""
    init_peer: Annotated[Path | None, arg(metavar="FILE")] = None
    """Initial peer, likewise."""
    init_reset_head: bool = False
    """Begin with a random classification layer, not with those files': for another set of classes."""
    weights_key: Annotated[str, arg(metavar="KEY")] = ""
    """Which weights, where those files hold several sets of them, such as state_dict_ema."""
    teacher: Annotated[Path | None, arg(metavar="PATH")] = None
    """The robust teacher, of a method that has one: a run, a checkpoint or a file with weights."""
    natural_teacher: Annotated[Path | None, arg(metavar="PATH")] = None
    """The teacher that was trained without an attack, of a method that has two; likewise."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Attack finished networks; beside it the paper's figures."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN ...]")] = ()
    """Runs, folders of runs, or weight files beside their run's config; default: the newest run in runs/."""
    attacks: str = "clean,fgsm,pgd20"
    """Comma-separated: clean, fgsm, pgdN (N steps), pgdNxR (from R random starts; one that succeeds counts),
    cw or cwN (PGD on the margin of the logits), unbounded (PGD that may leave the ball), aa (AutoAttack
    standard), aa-few-classes (what is defined of it for 2 or 3 classes), or one of its attacks alone:
    apgd-ce, apgd-t, fab-t, square."""
    table: int = 0
    """A table of PeerAiD's paper in place of --attacks. 2: peer or teacher under its own and its student's
    examples; 6: examples of other networks; 7: checks for hidden gradients; 0: none."""
    surrogates: Annotated[tuple[Path, ...], arg(metavar="RUN ...")] = ()
    """Make the images against these networks (runs, checkpoints or files), not against the one that is to
    withstand them; with --table 6 by default the newest runs of its surrogates' recipes in runs/."""
    autoattack: AutoAttackWay = "fast"
    """How aa runs: fast (fastpeer's own attacks on the network's fast form; what falls is checked on the
    network itself), tf32 (fast, rounded on CUDA), plain (on the network itself), official (pyautoattack)."""
    examples: int = 0
    """Use only this many test images, evenly spread, and print a 95 % interval; 0: all."""
    norm: Norm = "linf"
    """What epsilon bounds: the change of each pixel (linf), or the Euclidean length of an image's whole
    change (l2)."""
    epsilon: PixelDistance = 8 / 255
    """Radius of the ball; usual for l2 is 128/255 or 0.5."""
    step_size: PixelDistance = 2 / 255
    """Step of PGD; usual for l2 is 0.1, with an epsilon of 0.5."""
    curve: Annotated[str, arg(metavar="RADII")] = ""
    """Attack at several radii in place of epsilon, such as 0,2,4,8,16/255 (0: clean images), and print the
    accuracy over the radius. The step size keeps its ratio to the radius."""
    corruptions: Annotated[Path | None, arg(metavar="DIR")] = None
    """Classify the images of a folder in CIFAR-10-C's layout in place of --attacks: labels.npy, and for each
    corruption an .npy of five severities."""
    certify: Annotated[float, arg(metavar="SIGMA")] = 0.0
    """Certify L2 radii in place of --attacks, by smoothing with noise of this standard deviation (Cohen et
    al. 2019); 0: no."""
    certify_n0: int = 100
    """Noisy images that choose an image's class."""
    certify_n: int = 100_000
    """Noisy images that the class's probability is estimated from: the more, the larger the radii."""
    certify_alpha: float = 0.001
    """Probability that a certificate is wrong."""
    per_class: bool = False
    """Print the accuracy on each class, too, and the worst class."""
    stored: bool = False
    """Attack nothing: print and compare what earlier evaluations of these settings have stored."""
    checkpoints: str = "all"
    """Comma-separated: last, swa, best, best-swa; all: those that the run holds."""
    data: Annotated[Path | None, arg(metavar="DIR")] = None
    """A prepared data set; default: the one the run was trained on."""
    model: str = ""
    """Network of a weight file that lies outside a run folder: a shipped one, timm:NAME or module:Class."""
    weights_key: Annotated[str, arg(metavar="KEY")] = ""
    """Which weights of a file that holds several sets of them, such as state_dict_ema."""
    mean: tuple[float, ...] = ()
    """Normalisation within the network: 1 or 3 numbers; default: what its run or file says."""
    std: tuple[float, ...] = ()
    """Divides each channel after that."""
    size: int = 0
    """Side of the images, of a data set kept as JPEG; 0: the run's data.size."""
    batch_size: int = 256
    """Images attacked at once."""
    trust: bool = False
    """Import what files name, such as a run's own class or method; otherwise only what this line names. It
    runs code: know whose it is."""
    seed: int = 0
    """Of the random starts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: bool = False
    """Print nothing but the table, warnings and errors."""
    format: TableFormat = "text"
    """Of the table: text, csv, json, latex (booktabs) or markdown."""
    force_settings: bool = False
    """Attack a run's weights although its config.toml now says other things of their networks."""

    def __post_init__(self) -> None:
        check_distances(self.norm, epsilon=self.epsilon, step_size=self.step_size)
        for radius in self.radii:
            check_distances(self.norm, curve=radius)
        check_normalization(self.mean, self.std)
        check_pixel_range(self.mean, self.std)
        check_at_least(1, self, "batch_size")
        check_batch_size(self.batch_size)
        check_at_least(0, self, "seed", "examples", "size", "certify")
        check_at_least(1, self, "certify_n0", "certify_n")
        if not 0 < self.certify_alpha < 1:
            raise ValueError(f"certify_alpha must be between 0 and 1, got {self.certify_alpha}")

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of `curve`; none where there is none."""
        try:
            return parse_radii(self.curve) if self.curve else ()
        except ValueError as error:
            raise ValueError(f"curve {error}") from None


def parse(
    kind: type[Arguments], words: Sequence[str], prog: str, default: Arguments | None = None
) -> Arguments:
    """Read the words behind a command: tyro has the grammar and the help, `fit` checks the values.

    Raises:
        UserError: an unknown flag (the nearest are named), or a value that does not fit.
        SystemExit: after --help.
    """
    base: Any = kind(**_required(kind)) if default is None else default
    words, complaint = _known(words, flags_of(base), prog), io.StringIO()
    registry = ConstructorRegistry()
    registry.struct_rule(_as_table)
    registry.primitive_rule(_as_far_as_it_goes)
    try:
        with contextlib.redirect_stderr(complaint):
            read: Any = tyro.cli(
                kind, prog=prog, args=words, default=base, registry=registry, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # Nothing else that may be wrong with the words is left to tyro.
        raise UserError(f"{_lacking(complaint.getvalue(), words, kind)}: see {prog} --help") from None
    table, unexpected = read
    if unexpected:
        joined = _joined_by_commas(words, unexpected[0])
        advice = f"write {joined}" if joined else f"{prog} --help tells what may be given"
        raise UserError(f"unexpected {unexpected[0]!r}: {advice}")
    return fit(table, kind, getattr(base, "config", Config).method, _flag)


def _joined_by_commas(words: Sequence[str], unexpected: str) -> str:
    """Return how values of a flag that stand apart are written together; empty: there are none."""
    index = words.index(unexpected) if unexpected in words else 0
    if index < 2 or words[index - 2] not in LISTS:
        return ""
    values = itertools.takewhile(lambda word: not word.startswith("-"), words[index - 1 :])
    return f"{words[index - 2]} {','.join(value.strip(',') for value in values)}"


def _lacking(complaint: str, words: Sequence[str], kind: Any) -> str:
    """Tell which flag tyro lacks, or a value of it, in a frame that may break even the flag."""
    unframed = re.sub(r"[\s│|]*\n[\s│|]*", "", complaint)
    found = re.search(r"(--[a-z][\w.-]*)(?:'\.\s*Expected\s*([2-9]))?", unframed)
    flag, count = found.groups() if found else ("a flag", None)
    if found and flag not in words:
        choices = get_args(get_type_hints(kind).get(flag[2:].replace("-", "_")))
        named = choices and all(isinstance(choice, str) for choice in choices)
        return f"{flag} is required" + (f", one of {', '.join(choices)}" if named else "")
    return f"{flag} is missing a value" + (f", it takes {count}" if count else "")


def _as_table(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Let tyro leave a dataclass as a table, like a recipe's, and write its fields' help as plain text."""
    # A rule asks for what tyro does without it, and is then asked itself: it knows that by the marker.
    own = replace(info, markers=(*info.markers, _as_table))
    spec = None if _as_table in info.markers else ConstructorRegistry.get_struct_spec(own)
    if not isinstance(spec, StructConstructorSpec):
        return None

    def table(**values: Any) -> dict[str, Any]:
        return values

    table.__doc__ = info.type.__doc__  # Stands in the help.
    return replace(spec, instantiate=table, fields=tuple(map(_with_plain_help, spec.fields)))


def _with_plain_help(entry: StructFieldSpec) -> StructFieldSpec:
    """Let a setting's help wrap where the terminal does, and name its default only if it has one."""

    def text() -> str:
        help = entry.helptext() if callable(entry.helptext) else entry.helptext
        return " ".join((help or "").split())

    def default(label: str) -> str:
        return "" if label in ("", "''", "None") else f"(default: {printable(label)})"

    kind: Any = Annotated[entry.type, arg(help_behavior_hint=default)]
    return replace(entry, type=kind, helptext=text)


def _as_far_as_it_goes(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Let tyro leave a value that is not of its type as the text that it is: `fit` names its flag."""
    own = replace(info, markers=info.markers | {_as_far_as_it_goes})
    spec = None if _as_far_as_it_goes in info.markers else ConstructorRegistry.get_primitive_spec(own)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None

    def read(words: list[str]) -> Any:
        # An empty text would become the path of the current folder.
        if words == [""]:
            return ""
        try:
            return spec.instance_from_str(words)
        except ValueError:
            return words[0] if spec.nargs == 1 else words

    # That a path or a number may be missing is what its default says.
    metavar = spec.metavar.removeprefix("{None}|")
    return replace(spec, metavar=metavar, choices=None, instance_from_str=read)


def _required(kind: Any) -> dict[str, Any]:
    # Both defaults are the same only where they are missing.
    return {entry.name: tyro.MISSING for entry in fields(kind) if entry.default is entry.default_factory}


def flags_of(base: Any) -> dict[str, str]:
    """Return every flag; with a switch's its opposite, else an empty text."""
    hints = get_type_hints(type(base), include_extras=True)
    flags = {"--help": ""}
    for name, value in flat(asdict(base)).items():
        section, dot, own = name.rpartition(".")
        if isinstance(value, bool):
            opposite = _flag(f"{section}{dot}no-{own}")
            flags |= {_flag(name): opposite, opposite: _flag(name)}
        elif not {Positional, Suppress} & set(getattr(hints.get(name), "__metadata__", ())):
            flags[_flag(name)] = ""
    return flags


def _flag(name: str) -> str:
    """Spell a setting's dotted name as a flag."""
    return "--" + name.removeprefix("config.").replace("_", "-")


def _known(words: Sequence[str], flags: dict[str, str], prog: str) -> list[str]:
    """Refuse unknown flags, and turn `--data.augment false`, unknown to tyro, into `--data.no-augment`."""
    spelt: list[str] = []
    for word in at_equals(words, switches(flags)):
        # An empty text may be the value of a flag alone.
        if not word and (not spelt or flags.get(spelt[-1], "switch")):
            raise UserError(f"an argument is empty, perhaps by an unset variable: see {prog} --help")
        flag = word.replace("_", "-") if word.startswith("--") else ""
        if flag and flag not in flags:
            near = did_you_mean(flag, flags, f"{prog} --help lists all")
            raise UserError(f"unknown flag {word}; {near}")
        if spelt and flags.get(spelt[-1]) and word.lower() in BOOLEANS:
            spelt[-1] = spelt[-1] if word.lower() == "true" else flags[spelt[-1]]
        else:
            spelt.append(flag or word)
    return spelt


def switches(flags: dict[str, str]) -> set[str]:
    """Return those of `flags_of` that have an opposite."""
    return {flag for flag, opposite in flags.items() if opposite}


def at_equals(words: Sequence[str], switch_flags: Collection[str]) -> list[str]:
    """Return the words, those like --FLAG=VALUE as two.

    Raises:
        UserError: the value of a switch is neither true nor false.
    """
    parts: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if equals and flag.replace("_", "-") in switch_flags and value.lower() not in BOOLEANS:
            raise UserError(f"{flag} must be true or false, got {value!r}")
        parts += [flag, value] if equals else [flag]
    return parts
