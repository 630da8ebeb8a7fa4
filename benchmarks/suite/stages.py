"""What each stage does: its sections, those first that are worth most.

Together they may take longer than there is: what the time does not reach is named, and can be asked for.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Section:
    """One process of a stage.

    Attributes:
        name: of the section, and of its report and plot.
        words: its command: a module, such as benchmarks.throughput or pytest, and its arguments. In them
            {json} is the file of its report, {budget} the seconds that it may plan with, {work} a folder that
            outlives the stage, {images} an archive of images and {reference} a checkout of the released code.
        short: its arguments in the short form, for a CPU core.
        seconds: that it may take.
        least: it is not begun with less time left.
        reserve: seconds that those before it leave to it.
        beside: the sections behind it run beside it, until one joins; several may.
        joins: waits for what runs beside, to measure alone.
        vital: where it fails, those behind it make no sense.
        needs: what must have been given: images, reference.
    """

    name: str
    words: tuple[str, ...]
    short: tuple[str, ...]
    seconds: float
    least: float = 20.0
    reserve: float = 0.0
    beside: bool = False
    joins: bool = False
    vital: bool = False
    needs: tuple[str, ...] = ()

    def command(self, short: bool, blanks: Mapping[str, str]) -> list[str]:
        """Return the command, its blanks filled in."""
        module, *rest = self.words
        words = [*(self.short if short else rest)]
        head = [module] if module.endswith(".py") else ["-m", module]
        return [sys.executable, *head, *(_filled(word, blanks) for word in words)]

    def obstacle(self, given: Mapping[str, str]) -> str:
        """Return what it needs and was not given, or nothing."""
        lacking = [f"--{name}" for name in self.needs if not given.get(name)]
        return f"needs {' and '.join(lacking)}" if lacking else ""


def _filled(word: str, blanks: Mapping[str, str]) -> str:
    for name, value in blanks.items():
        word = word.replace("{" + name + "}", value)
    return word


SECONDS = {"first": 285.0, "speed": 480.0, "train": 540.0, "rest": 540.0}
"""How long a stage takes at most, by itself."""
JSON = "--json {json}"
BUDGET = "--budget {budget}"
BRIEF = "--rounds 3 --seconds 0.01 --device cpu"
SMALL = f"--models resnet8 --batch-sizes 2 --engine.compile off {BRIEF}"
MAKES = "rslad ard adaad mtard cat kdiga-ard"
"""One method of each make: towards a teacher, attacked in train mode, with a target that moves, with weights
that move, with two attacks and forwards after the update, with a second derivative."""


def script(name: str, words: str = "", *, short: str, seconds: float, file: str = "", **more: Any) -> Section:
    """Return a section of a benchmark that takes --json: benchmarks.FILE."""
    module = f"benchmarks.{file or name.replace('-', '_')}"
    return Section(
        name, (module, *f"{words} {JSON}".split()), tuple(f"{short} {JSON}".split()), seconds, **more
    )


def throughput(name: str, words: str = "", *, seconds: float, short: str = SMALL, **more: Any) -> Section:
    """Return a section that measures the step beside the released one."""
    return script(name, f"{words} {BUDGET}", short=short, seconds=seconds, file="throughput", **more)


def tests(name: str, where: str, short: str, seconds: float, **more: Any) -> Section:
    """Return a section of tests that need a GPU."""
    # Each test is named as it ends, lest the section takes all with it; each example compiles its kernel.
    words = "-v -p no:cacheprovider -W default --continue-on-collection-errors --hypothesis-profile brief"
    return Section(
        name, ("pytest", *f"{words} -m gpu {where}".split()), tuple(f"{words} {short}".split()), seconds,
        **more,
    )  # fmt: skip


CHECK_BRIEFLY = "--models resnet8 --batch 4 --size 16 --steps 2 --no-compile --parts fold merge --device cpu"

FIRST = [
    script("environment", file="suite.environment", short="--device cpu", seconds=90, vital=True),
    # A minute on the processor, meanwhile the GPU checks; what it compiles serves all sections behind it.
    script(
        "compile-ahead",
        file="speed.compile_ahead",
        short="--models resnet8 --batch-sizes 2 --engine.compile off --device cpu",
        seconds=180,
        beside=True,
    ),
    tests("kernel-tests", "tests/kernels/interpreted", "tests/kernels/test_pgd_update.py", 120, beside=True),
    script(
        "checks",
        # float64 convolutions are slow there: few images, and steps enough for a replay and a smaller batch.
        f"--models resnet18 --methods {MAKES} --batch 8 --steps 3 --no-compile"
        " --parts fold chain kernels merge --precisions fp32 bf16",
        file="quality.checks",
        short=f"{CHECK_BRIEFLY} --methods rslad mtard",
        seconds=90,
    ),
    throughput(
        "throughput",
        "--rounds 8 --profile",
        short=f"{SMALL} --profile",
        seconds=140,
        least=45,
        reserve=90,
        joins=True,
    ),
]

SPEED = [
    script(
        "ablation",
        # Without compiling, of which the full step has nothing left.
        f"--no-ladder --leave-out --rounds 6 --seconds 0.3 {BUDGET}"
        " --parts fold chain kernels merge graph convolutions other_convolutions sign_bits stem"
        " stem_step head batchnorm streams",
        file="speed.ablation",
        short=f"--models resnet8 --batch-sizes 2 --no-ladder --leave-out --parts fold merge graph {BRIEF}",
        seconds=170,
        least=60,
    ),
    script(
        "train-mode",
        # The attack is all that is compiled: own kernels run the teacher and the training passes.
        "--methods ard --no-ladder --leave-out --take-away compile --rounds 5 --seconds 0.3"
        f" {BUDGET} --parts fold chain kernels merge graph convolutions stem batchnorm compile",
        file="speed.ablation",
        short="--models resnet8 --batch-sizes 2 --methods ard --no-ladder --leave-out --take-away merge"
        f" --parts merge {BRIEF}",
        seconds=110,
        least=60,
    ),
    script(
        "primitives",
        f"--networks resnet18 --dtypes bf16 fp16 --rounds 5 {BUDGET}",
        file="speed.primitives",
        short=f"--networks small --batches 4 --dtypes bf16 --no-compile {BRIEF}",
        seconds=120,
    ),
    script(
        "tiles",
        f"--most 3 --rounds 5 --table {{work}}/tiles.json {BUDGET}",
        short="--table {work}/tiles.json --device cpu",
        seconds=75,
        file="speed.tiles",
    ),
    throughput("batch-512", "--batch-sizes 512 --rounds 5", seconds=110, least=60),
    throughput("wide", "--models wideresnet34x10 --rounds 4", seconds=220, least=120),
    throughput("tiny", "--datasets tiny --rounds 4", seconds=130, least=60),
    throughput("mobilenetv2", "--models mobilenetv2 --rounds 5", seconds=200, least=100),
    throughput(
        "fp16",
        "--precisions bf16 fp16 --attack-precisions run fp16 --rounds 5",
        short=f"{SMALL} --precisions bf16 fp16 --attack-precisions run fp16",
        seconds=120,
        least=60,
    ),
    throughput(
        "reference", "--reference {reference} --rounds 5", seconds=100, least=45, needs=("reference",)
    ),
    throughput("batch-256", "--batch-sizes 256 --rounds 5", seconds=110, least=60),
    script(
        "gaps",
        f"--rounds 3 --seconds 0.3 {BUDGET}",
        short=f"--steps 1 {SMALL}",
        seconds=120,
        least=60,
        file="speed.timeline",
    ),
]

IMAGES = ("images",)
BRIEFLY = (
    "--minutes 0.01 --most-steps 3 --examples 16 --model resnet8 --batch 8 --precision fp32 --attacks pgd2"
    " --work {work} --device cpu"
)


def prepared_images(vital: bool) -> Section:
    """Return the section that unpacks and prepares the images, unless that was done."""
    words = "--images {images} --work {work}"
    return script(
        "images",
        words,
        short=f"{words} --few",
        seconds=75,
        file="quality.prepare_images",
        vital=vital,
        needs=IMAGES,
    )


TRAIN = [
    prepared_images(vital=True),
    script(
        "repeatability",
        "--work {work}",
        short="--work {work} --steps 2 --model resnet8 --batch 8 --precision fp32 --device cpu",
        seconds=90,
        file="quality.repeatability",
        needs=IMAGES,
    ),
    script(
        "training",
        f"--minutes 6 --work {{work}} {BUDGET}",
        short=BRIEFLY,
        seconds=430,
        least=200,
        file="quality.minutes",
        needs=IMAGES,
    ),
    script(
        "autoattack",
        "{work}/runs/fastpeer --attacks aa --examples 500",
        short="{work}/runs/fastpeer --attacks pgd2 --examples 16 --device cpu",
        seconds=180,
        reserve=110,
        file="quality.attack_run",
        needs=IMAGES,
    ),
    script(
        "training-literal",
        f"--literal --minutes 6 --work {{work}} {BUDGET}",
        short=f"--literal {BRIEFLY}",
        seconds=430,
        least=200,
        file="quality.minutes",
        needs=IMAGES,
    ),
]

REST = [
    script(
        "methods",
        "--methods rslad ard adaad mtard --rounds 4 --budget 40",
        file="speed.methods",
        short=f"--methods rslad kdiga-ard {SMALL}",
        seconds=210,
        least=60,
    ),
    script(
        "evaluation-speed",
        f"--rounds 4 {BUDGET}",
        file="speed.evaluation_speed",
        short=f"--models resnet8 --batch-sizes 4 --steps 2 {BRIEF}",
        seconds=60,
    ),
    script(
        "kernel-times",
        f"--rounds 5 --seconds 0.02 --networks resnet18 mobilenetv2 {BUDGET}",
        short=f"--only attack_gradient --no-compile {BRIEF}",
        seconds=75,
        file="speed.kernels",
    ),
    script(
        "kernel-errors", file="quality.kernel_errors", short="--only bias_sum_relu --device cpu", seconds=60
    ),
    prepared_images(vital=False),
    script(
        "attack-strength",
        "--run {work}/runs/fastpeer --data {work}/data --precisions fp32 tf32 bf16 fp16",
        file="quality.attack_strength",
        short="--run {work}/runs/fastpeer --data {work}/data --batches 1 --precisions fp32 --device cpu",
        seconds=100,
        needs=IMAGES,
    ),
    script(
        "attack-signs",
        "--run {work}/runs/fastpeer --data {work}/data",
        file="quality.attack_signs",
        short="--run {work}/runs/fastpeer --data {work}/data --batches 1 --scales 1024 --device cpu",
        seconds=60,
        needs=IMAGES,
    ),
    script(
        "loader",
        "{work}/data --rounds 5",
        file="speed.loader",
        short=f"{{work}}/data --workers 1 {BRIEF}",
        seconds=60,
        needs=IMAGES,
    ),
    tests("data-tests", "tests/data", "tests/data/test_counter.py", 60),
    script("roofline", file="speed.roofline", short="--seconds 0.1 --device cpu", seconds=30),
    script(
        "checks-others",
        "--models wideresnet10x1 mobilenetv2 --no-compile --parts fold chain kernels merge streams",
        short=CHECK_BRIEFLY,
        seconds=120,
        file="quality.checks",
    ),
    script(
        "checks-own",
        "--models resnet8 --no-tail --no-compile --precisions bf16 --part-precisions bf16"
        " --parts convolutions other_convolutions sign_bits stem stem_step head",
        short=CHECK_BRIEFLY,
        seconds=90,
        file="quality.checks",
    ),
    script(
        "checks-compiled",
        "--models resnet8 --no-tail --parts compile --precisions bf16 --part-precisions fp32",
        short=CHECK_BRIEFLY,
        seconds=120,
        file="quality.checks",
    ),
    script(
        "accuracy-parity",
        "--recipe cifar10-resnet18 --model resnet18 --steps 400 --seeds 0 1 --precisions bf16"
        " --engine.compile off --data {work}/data",
        file="quality.accuracy_parity",
        short="--steps 2 --seeds 0 --precisions fp32 --examples 32 --engine.compile off --device cpu",
        seconds=200,
        needs=IMAGES,
    ),
]

STAGES: Mapping[str, Sequence[Section]] = {"first": FIRST, "speed": SPEED, "train": TRAIN, "rest": REST}
