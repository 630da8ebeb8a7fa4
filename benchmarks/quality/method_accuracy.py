"""What does each method learn in a few epochs? One short training for all of them, with the same teachers.

python -m benchmarks.quality.method_accuracy --data data/cifar10 --out /tmp/methods --epochs 8

Runs the commands that a user would type, and reads what they leave in the runs' folders.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.harness.display import missing, show
from benchmarks.harness.process import run_fastpeer
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from fastpeer.config import format_fraction
from fastpeer.config.recipes import load_recipe
from fastpeer.errors import UserError
from fastpeer.evaluation.results import Result, read_results
from fastpeer.methods import build_table, loss_settings, method_names

ATTACKS = {"clean": "% clean", "fgsm": "% under FGSM", "pgd20": "% under PGD-20"}
TEACHER, NATURAL_TEACHER = "teacher-trades", "teacher-natural"
RECIPE = """\
like = "cifar10-resnet18"

[model]
student = "{model}"
peer = "{model}"

[optim]
lr = {lr}
weight_decay = 5e-4
milestones = [{first}, {second}]

[swa]
enabled = false

[train]
batch_size = {batch}
epochs = {epochs}

[selection]
split = "val"
examples = 500
every = {epochs}

[log]
tensorboard = false
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Train every method for the same few epochs, and attack the students."""

    data: Path
    """A prepared data set."""
    out: Path
    """Folder for the runs; those that are there already are evaluated as they are."""
    methods: tuple[str, ...] = ()
    """Which; default: all."""
    model: str = "resnet8"
    """Student, peer and teachers."""
    epochs: int = 8
    """Of every method."""
    teacher_epochs: int = 12
    """Of the teachers: one by TRADES, one naturally."""
    batch: int = 64
    """Images in a step."""
    lr: float = 0.05
    """Learning rate of the first epochs; a tenth from 60 % on, a hundredth from 85 % on."""
    amp: bool = True
    """Train in bf16."""
    examples: int = 0
    """Test images, 0: all."""
    limit: float = 7200.0
    """Seconds for a training, at most."""


@dataclass(frozen=True)
class Variant:
    """A training.

    Attributes:
        name: of its run.
        method: what is learnt.
        flags: further words for `fastpeer train`.
    """

    name: str
    method: str
    flags: tuple[str, ...] = ()


def main(arguments: Arguments) -> None:
    """Train and attack one after the other; show and write after each."""
    device = arguments.chosen_device()
    report = Report("method_accuracy", arguments, device, arguments.json)
    arguments.out.mkdir(parents=True, exist_ok=True)
    teachers = [Variant(TEACHER, "trades"), Variant(NATURAL_TEACHER, "natural")]
    for variant in teachers:
        follow(variant, arguments, arguments.teacher_epochs, report)
    for variant in variants(arguments):
        follow(variant, arguments, arguments.epochs, report)
        report.save()
    show(table_of(report), *missing(report))


def variants(arguments: Arguments) -> list[Variant]:
    """Return what is compared; what begins late in a full training begins at half of this one."""
    late = ("--loss.begin", str(arguments.epochs // 2))
    flags = {"iad": late, "iad-ii": late}
    found = [Variant(name, name, flags.get(name, ())) for name in arguments.methods or sorted(method_names())]
    if any(variant.method == "kdiga" for variant in found):
        found.append(Variant("kdiga-adversarial", "kdiga", ("--loss.adversarial",)))
    return found


def follow(variant: Variant, arguments: Arguments, epochs: int, report: Report) -> None:
    """Train and evaluate, unless that was done before, and record the accuracies."""
    run = arguments.out / variant.name
    try:
        if not (run / "results.json").exists():
            command(training(variant, arguments, epochs), arguments)
            command(evaluation(run, arguments), arguments)
    except UserError as error:
        report.miss(variant.name, str(error), method=variant.method)
        return
    labels = {"method": variant.method, "epochs": epochs}
    for result in latest(read_results(run / "results.json")):
        report.add(counted(variant.name, result.accuracy, ATTACKS[result.attack], **labels))


def training(variant: Variant, arguments: Arguments, epochs: int) -> list[str]:
    """Return the words behind `fastpeer`; the short recipe is written beside the runs."""
    recipe = arguments.out / f"{epochs}-epochs.toml"
    first = round(0.6 * epochs)
    text = RECIPE.format(
        model=arguments.model, lr=arguments.lr, batch=arguments.batch, epochs=epochs,
        first=first, second=max(first + 1, round(0.85 * epochs)),
    )  # fmt: skip
    recipe.write_text(text, "utf-8")
    words = ["train", str(recipe), "--method", variant.method, "--data", str(arguments.data), *variant.flags]
    words += ["--out", str(arguments.out / variant.name), "--device", arguments.device, "--force"]
    for role in teachers_of(variant.method):
        found = {"teacher": TEACHER, "natural_teacher": NATURAL_TEACHER}[role]
        words += [f"--{role.replace('_', '-')}", str(arguments.out / found)]
    return [*words, "--amp"] if arguments.amp else words


def evaluation(run: Path, arguments: Arguments) -> list[str]:
    """Return the words behind `fastpeer`."""
    words = ["eval", str(run), "--attacks", ",".join(ATTACKS), "--checkpoints", "last"]
    return [*words, "--examples", str(arguments.examples), "--device", arguments.device]


def teachers_of(method: str) -> tuple[str, ...]:
    """Name the teachers that a method needs."""
    return build_table(method, loss_settings(method)()).frozen


def command(words: list[str], arguments: Arguments) -> None:
    """Run `fastpeer` with some words.

    Raises:
        UserError: it failed, with its last line.
    """
    ended = run_fastpeer(words, arguments.limit, arguments.out / "log.txt")
    if ended.state != "done":
        raise UserError((ended.output.splitlines() or [ended.reason])[-1])


def latest(results: list[Result]) -> list[Result]:
    """Return the last result of each attack."""
    return list({result.attack: result for result in results if result.attack in ATTACKS}.values())


def table_of(report: Report) -> Table:
    """Return all trainings, by what they withstand."""
    table = Table("method", "epochs", *ATTACKS.values(), title=title(report))
    names = list(dict.fromkeys(entry.name for entry in report.records))
    values = {(entry.name, entry.unit): entry for entry in report.records}
    for name in names:
        found = [values[name, unit] for unit in ATTACKS.values()]
        table.add_row(name, str(found[0].labels["epochs"]), *(f"{entry.value:.2f}" for entry in found))
    return table


def title(report: Report) -> str:
    """Say what was trained on what; the recipe that the short ones are like has the attack."""
    epsilon = format_fraction(load_recipe("cifar10-resnet18").attack.epsilon)
    return f"{report.settings['model']}, {report.settings['data']}, last epoch, epsilon {epsilon}"


if __name__ == "__main__":
    start(main, Arguments)
