"""`fastpeer train`: begin a run, or go on with one."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastpeer.cli.arguments import BOOLEANS, TrainArguments, at_equals, flags_of, parse, switches
from fastpeer.cli.log_lines import log_to
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.cli.resuming import refuse_other_files, refuse_other_settings, resume, resumed_base
from fastpeer.cli.summary import print_summary
from fastpeer.config import Config, TeacherConfig
from fastpeer.config.recipes import DEFAULT_RECIPE, recipe_of_method
from fastpeer.errors import Interrupted, UserError
from fastpeer.links import through_links
from fastpeer.methods import loss_settings, method_names
from fastpeer.models.pixel_range import check_pixel_range
from fastpeer.printing import print_line
from fastpeer.provenance import begun, ended, with_start
from fastpeer.run_folder import RunFolder, newest_run, newest_run_of

if TYPE_CHECKING:
    from fastpeer.training.setup import TrainingSetup
    from fastpeer.training.trainer import Trainer

PROG = "fastpeer train"
log = logging.getLogger(__name__)


def train_command(words: Sequence[str]) -> None:
    """Train as the words behind `fastpeer train` say, and print the accuracies reached.

    Raises:
        UserError: whatever the user can fix.
    """
    switch_flags = switches(flags_of(TrainArguments())) | _loss_switches(method_names())
    typed, words = ["train", *words], at_equals(words, switch_flags)
    method, left = _take_method(words)
    given = _without_settings(left, method)
    recipe = given.recipe or DEFAULT_RECIPE
    name = _run_name(recipe, method)
    console = Console(quiet=given.quiet)
    with log_to(console):
        run = _run_folder(given, name)
        base = resumed_base(run, given, method) if given.resume else recipe_of_method(recipe, method)
        arguments = _with_teachers(_all_settings(left, given, base, method))
        if arguments.dry_run:
            _dry_run(arguments, run, console)
            words = ["train", *_without_dry_run(words)]
        else:
            words = _next_words(_train(arguments, run, name, typed, console))
    print_line(console, f"next: fastpeer {shlex.join(words)}")


def _without_dry_run(words: Sequence[str]) -> list[str]:
    spelt = [word.replace("_", "-") for word in words]
    dry = [flag == "--dry-run" and word.lower() in BOOLEANS for flag, word in pairwise(["", *spelt])]
    return [
        word for word, flag, value in zip(words, spelt, dry, strict=True) if flag != "--dry-run" and not value
    ]


def _next_words(trainer: "Trainer") -> list[str]:
    """Return the command that follows a training, for as many classes as it may have."""
    from fastpeer.evaluation.autoattack_parts.standard import FEW_CLASSES, MIN_CLASSES

    autoattack = "aa" if trainer.setup.classes >= MIN_CLASSES else FEW_CLASSES
    attacks = ["--attacks", f"clean,fgsm,pgd20,{autoattack}"]
    # eval attacks in the paper's ball, which is of L-infinity.
    ball = trainer.config.attack.ball_flags if trainer.config.attack.norm == "l2" else []
    return ["eval", str(trainer.run.path), *attacks, *ball, *_trust(trainer)]


def _trust(trainer: "Trainer") -> list[str]:
    """Return what a later command needs to import what the run's settings name."""
    return ["--trust"] if trainer.config.own_code else []


def _run_folder(given: TrainArguments, name: str) -> RunFolder:
    """Return the folder of --out; else of a new run, or with --resume of the recipe's newest run."""
    if given.out is not None:
        return RunFolder(given.out)
    newest = newest_run_of(name) if given.resume else None
    if newest is None and given.resume and not RunFolder(Path("runs") / name).exists:
        raise UserError(
            f"no run of {name} in runs/: name the run by --out, such as --out {newest_run().path}"
        )
    if newest is None:
        return RunFolder(Path("runs") / name)
    log.info("resuming %s, the newest run of %s", newest.path, name)
    return newest


def _all_settings(
    words: Sequence[str], given: TrainArguments, base: Config, method: str | None
) -> TrainArguments:
    if given.resume and method not in (None, base.method):
        raise UserError(f"--resume: method was {base.method} in this run and cannot become {method}")
    return parse(TrainArguments, words, PROG, default=replace(TrainArguments(), config=base))


def _take_method(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the last value of --method, if it is given, and the words without it."""
    named = [word for flag, word in pairwise([*words, ""]) if flag == "--method"]
    left = [word for flag, word in pairwise(["", *words]) if "--method" not in (flag, word)]
    if named and (not named[-1] or named[-1].startswith("--")):
        raise UserError(f"--method is missing a value: see {PROG} --help")
    return named[-1] if named else None, left


def _without_settings(words: Sequence[str], method: str | None) -> TrainArguments:
    """Read what comes before the recipe's settings; which of them the method has may not be known yet."""
    switch_flags = _loss_switches(method_names() if method is None else [method])
    left = []
    for flag, word in pairwise(["", *words]):
        switch = flag.replace("_", "-") in switch_flags
        value = word.lower() in BOOLEANS if switch else not word.startswith("--")
        # What is wrong with the method's settings shows when all are read.
        if not word.startswith("--loss.") and not (flag.startswith("--loss.") and value):
            left.append(word)
    left = [word for word in left if word not in ("-h", "--help")]
    return parse(TrainArguments, left, PROG, default=TrainArguments())


def _loss_switches(methods: Sequence[str]) -> set[str]:
    losses = (entry for name in methods for entry in fields(loss_settings(name)))
    names = [entry.name.replace("_", "-") for entry in losses if entry.type in (bool, "bool")]
    return {f"--loss.{prefix}{name}" for name in names for prefix in ("", "no-")}


def _with_teachers(arguments: TrainArguments) -> TrainArguments:
    """Put the teachers' paths into the settings, whole, so that the run finds them from anywhere."""
    config = arguments.config
    config = replace(
        config,
        teacher=_found(config.teacher, arguments.teacher),
        natural_teacher=_found(config.natural_teacher, arguments.natural_teacher),
    )
    return replace(arguments, config=config)


def _found(settings: TeacherConfig, given: Path | None) -> TeacherConfig:
    path = str(given) if given is not None else settings.weights
    return replace(settings, weights=str(Path(path).expanduser().absolute()) if path else "")


def _train(
    arguments: TrainArguments, run: RunFolder, name: str, typed: Sequence[str], console: Console
) -> "Trainer":
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    import_pytorch()
    from fastpeer.cli.plan import plan
    from fastpeer.training.progress import choose_reporter
    from fastpeer.training.signals import stopping_on_signals
    from fastpeer.training.trainer import Trainer

    config, setup = _prepare(arguments, run, console)
    reporter = choose_reporter(arguments.quiet, console)
    with run.locked(), stopping_on_signals() as stop:
        if not arguments.resume:
            run.create(config, _facts(setup, name), arguments.force)
        trainer = Trainer(run, config, setup, reporter, stop)
        if arguments.resume:
            resume(trainer)
            run.write_config(config)
        for line in plan(trainer):
            log.info(line)
        with _recorded(trainer, typed):
            trainer = _carry_out(trainer)
    print_summary(trainer.summary, trainer.selection, console, _unmeasured_steps(trainer))
    return trainer


@contextmanager
def _recorded(trainer: "Trainer", typed: Sequence[str]) -> Iterator[None]:
    """Record this start of the run in run.json, and when it ended, however it does."""
    from fastpeer.training.setup import device_name

    run, start = trainer.run, begun(typed, trainer.position.step, device_name(trainer.setup.device))
    run.update_facts(partial(with_start, start=start))
    try:
        yield
    finally:
        try:
            run.update_facts(ended)
        except UserError as error:
            log.warning("%s; the run's end is not recorded", error)


def _unmeasured_steps(trainer: "Trainer") -> int:
    """Return how many steps were taken since the last evaluation, if there was one."""
    if "last" not in trainer.summary:
        return 0
    evaluated: int = (trainer.summary["last"]["epoch"] + 1) * trainer.steps_per_epoch
    return trainer.position.step - evaluated


def _dry_run(arguments: TrainArguments, run: RunFolder, console: Console) -> None:
    """Print what the training would do and take; nothing is written, and no folder is locked."""
    import_pytorch()
    from fastpeer.cli.plan import dry_run, plan
    from fastpeer.training.progress import Reporter, announcing
    from fastpeer.training.signals import StopRequest, interruptible
    from fastpeer.training.trainer import Trainer

    config, setup = _prepare(arguments, run, console)
    trainer = Trainer(run, config, setup, Reporter(), StopRequest())
    if arguments.resume:
        resume(trainer)
    for line in plan(trainer):
        log.info(line)
    with announcing(console) as announce, interruptible():
        lines = list(dry_run(trainer, announce))
    for line in lines:
        log.info(line)


def _prepare(arguments: TrainArguments, run: RunFolder, console: Console) -> "tuple[Config, TrainingSetup]":
    """Check what was asked for, cheap checks first, and open data and networks; nothing is written."""
    from fastpeer.data.dataset import open_dataset
    from fastpeer.device import choose_device
    from fastpeer.step.precision import amp_precision
    from fastpeer.training.progress import announcing
    from fastpeer.training.setup import describe, set_up
    from fastpeer.training.signals import interruptible

    _refuse_stray_flags(arguments)
    device = choose_device(arguments.device)
    config = arguments.config
    if arguments.amp:
        config = replace(config, precision=amp_precision(device))
    _refuse_conflicts(arguments, config, run)
    with announcing(console) as announce, interruptible():
        announce("reading the data set's description")
        dataset = open_dataset(_data_folder(arguments, run, config))
        given = {"student": arguments.init_student, "peer": arguments.init_peer}
        initial = {network: file and through_links(file) for network, file in given.items()}
        setup = set_up(
            config, dataset, device, initial, arguments.weights_key, arguments.init_reset_head, announce
        )
    if arguments.resume:
        refuse_other_files(run, describe(setup))
    return config, setup


def _facts(setup: "TrainingSetup", name: str) -> dict[str, Any]:
    from fastpeer.training.setup import describe

    return {"recipe": name, "steps_per_epoch": setup.training.steps_per_epoch, **describe(setup)}


def _refuse_conflicts(arguments: TrainArguments, config: Config, run: RunFolder) -> None:
    """Refuse what needs no data to be seen as wrong."""
    from fastpeer.training.loggers import check_loggers

    check_loggers(config.log.to)
    if arguments.resume:
        refuse_other_settings(config, run, arguments.force_settings)
    else:
        _refuse_other_pixel_range(config)
        _refuse_own_files(arguments, run)
        _refuse_taken_folder(arguments, run)


def _refuse_taken_folder(arguments: TrainArguments, run: RunFolder) -> None:
    try:
        run.refuse_unless_free(arguments.force)
    except UserError as error:
        if not arguments.dry_run:
            raise
        log.info("note: without --dry-run this would be refused: %s", error)


def _refuse_stray_flags(arguments: TrainArguments) -> None:
    if arguments.init_reset_head and not (arguments.init_student or arguments.init_peer):
        raise UserError("--init-reset-head is for the files of --init-student and --init-peer: name one")
    if arguments.weights_key and not (arguments.init_student or arguments.init_peer):
        raise UserError(
            "--weights-key is for the files of --init-student and --init-peer: a teacher's is"
            " --teacher.weights-key"
        )


def _refuse_other_pixel_range(config: Config) -> None:
    """Refuse a normalisation for pixels from 0 to 255, in a new run: those of before go on as they are."""
    for section in ("model", "teacher", "natural_teacher"):
        settings = getattr(config, section)
        try:
            check_pixel_range(settings.mean, settings.std)
        except ValueError as error:
            raise UserError(f"--{section.replace('_', '-')}.{error}") from None


def _refuse_own_files(arguments: TrainArguments, run: RunFolder) -> None:
    """Keep what the run is to begin from or learn from out of the folder that it will clear."""
    config, folder = arguments.config, run.path.resolve()
    files = {
        "--teacher": config.teacher.weights, "--natural-teacher": config.natural_teacher.weights,
        "--init-student": arguments.init_student, "--init-peer": arguments.init_peer,
    }  # fmt: skip
    for flag, file in files.items():
        if file and Path(file).resolve().is_relative_to(folder):
            raise UserError(f"{flag} lies in {run.path}, which this run takes over: choose another --out")


def _carry_out(trainer: "Trainer") -> "Trainer":
    """Train to the end, and return the trainer that came there: another one, if the run went back."""
    from fastpeer.device import memory_errors
    from fastpeer.training.nonfinite import NonFinite, after_non_finite
    from fastpeer.training.signals import Stopped

    while True:
        try:
            with memory_errors("--selection.batch_size"):
                trainer.train()
            return trainer
        except NonFinite as error:
            after_non_finite(error, trainer.config.train, trainer.rollbacks)
            trainer = trainer.rolled_back()
        except Stopped:
            raise Interrupted(
                f"stopped at step {trainer.position.step}, all saved; go on with:"
                f" {PROG} {shlex.join(['--resume', '--out', str(trainer.run.path), *_trust(trainer)])}"
            ) from None


def _run_name(recipe: str, method: str | None) -> str:
    """Return a recipe's name, or for the config.toml of a run that run's name with -again; and the method."""
    path = Path(recipe)
    again = path.is_file() and RunFolder(path.parent).exists
    name = f"{path.absolute().parent.name}-again" if again else path.stem
    return name if method is None or name.endswith(f"-{method}") else f"{name}-{method}"


def _data_folder(arguments: TrainArguments, run: RunFolder, config: Config) -> Path:
    if arguments.data is not None:
        return arguments.data
    origin = run if arguments.resume else RunFolder(Path(arguments.recipe).parent)
    if arguments.resume or (Path(arguments.recipe).is_file() and origin.exists):
        # The recipe is a run's own config.toml: the same data again.
        return Path(origin.read_facts()["data"]["folder"])
    if not config.data.dataset:
        raise UserError("which data? name a prepared data set with --data DIR (the recipe names none)")
    return Path("data") / config.data.dataset
