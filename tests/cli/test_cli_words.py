"""Help, start-up, and words that mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastpeer.cli.arguments import EvalArguments, TrainArguments, flags_of, parse
from fastpeer.cli.main import main
from fastpeer.config.recipes import DEFAULT_RECIPE, recipe_names
from fastpeer.config.toml import setting_names
from fastpeer.data_prep import PrepOptions
from fastpeer.errors import UserError


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        printed = capsys.readouterr()
        assert all(command in printed.out for command in ("prep", "train", "eval", "recipes"))
        assert printed.err == ""


@pytest.mark.parametrize("command", ["prep", "train", "eval"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"fastpeer {command}" in printed.out
    assert printed.err == ""


def test_every_setting_stands_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["train", "--help"])
    shown = capsys.readouterr().out
    names = [name for name in setting_names() if not name.startswith("paper")]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in shown] == []
    assert "--paper" not in shown


@pytest.mark.parametrize("command", ["prep", "train", "eval"])
def test_help_is_not_about_python(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main([command, "--help"])
    shown = capsys.readouterr().out
    assert not [word for word in ("None", "default: )", "''", "PosixPath", "typing") if word in shown]
    assert command != "train" or ("[RECIPE]" in shown and f"default: {DEFAULT_RECIPE}" in shown)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fastpeer ")


def test_help_waits_for_no_large_library() -> None:
    code = (
        "import sys; from fastpeer.cli.main import main; main(['--help']);"
        "sys.exit(str({'torch', 'numba', 'ffcv', 'tyro', 'rich'} & sys.modules.keys() or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.strip() == ""


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(one, marks=pytest.mark.soak) for one in ("latin-1", "cp437"))]
)
@pytest.mark.parametrize("command", ["prep", "train", "eval", "recipes"])
def test_help_is_spelled_out_where_a_terminal_has_few_characters(command: str, encoding: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fastpeer", command, "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert ended.returncode == 0, ended.stderr
    shown = ended.stdout.decode(encoding)
    assert command != "train" or encoding == "cp437" or "Temperature tau" in shown


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["train", "--help"], 0), (["recipes"], 0), (["train", "nosuch"], 2), (["prap"], 2)],
)
def test_torch_is_not_loaded_for_what_needs_none(words: list[str], code: int) -> None:
    program = (
        "import sys; from fastpeer.cli.main import main; code = main(sys.argv[1:]);"
        " heavy = {'torch', 'ffcv', 'numba', 'scipy'} & set(sys.modules);"
        " assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", ["trian", "train"]),
        ("--foo", ["--foo", "recipes"]),
        ("train tiny.toml --attack.step 3", ["--attack.step", "--attack.steps"]),
        ("train tiny.toml --epochs 3", ["--epochs", "--train.epochs"]),
        ("train tiny.toml --batch-size 3", ["--batch-size", "--train.batch-size"]),
        ("train tiny.toml --config.attack.steps 3", ["--attack.steps"]),
        ("train tiny.toml --paper.clean 99", ["--paper.clean"]),
        ("train tiny.toml --attack.steps=x", ["--attack.steps", "whole number", "x"]),
        ("train tiny.toml --attack.steps 1.5", ["--attack.steps", "1.5"]),
        ("train tiny.toml --attack.steps -1", ["steps", "0 or more", "-1"]),
        ("train tiny.toml --attack.steps", ["--attack.steps"]),
        ("train tiny.toml --attack.epsilon 8/0", ["--attack.epsilon", "8/255", "8/0"]),
        ("train tiny.toml --attack.epsilon nan", ["--attack.epsilon", "nan"]),
        ("train tiny.toml --attack.epsilon inf", ["epsilon"]),
        ("train tiny.toml --optim.lr nan", ["lr", "nan"]),
        ("train tiny.toml --optim.lr inf", ["lr", "inf"]),
        ("train tiny.toml --optim.lr fast", ["--optim.lr", "fast"]),
        ("train tiny.toml --optim.milestones 3 2", ["milestones", "increasing"]),
        ("train tiny.toml --optim.milestones a", ["--optim.milestones", "a"]),
        ("train tiny.toml --train.epochs 0", ["epochs", "1 or more"]),
        ("train tiny.toml --seed -1", ["seed", "0 or more", "-1"]),
        ("train tiny.toml --seed 99999999999999999999", ["seed"]),
        ("train tiny.toml --data.augment maybe", ["maybe"]),
        ("train tiny.toml --data.augment=maybe", ["--data.augment must be true or false", "maybe"]),
        ("train tiny.toml --amp=1", ["--amp must be true or false", "1"]),
        ("train tiny.toml --method pgd-at --loss.no-extra_forwards=no", ["--loss.no-extra_forwards must be"]),
        ("train tiny.toml --xyzzy 3", ["--xyzzy; fastpeer train --help lists all"]),
        ("train xyzzy", ["xyzzy is neither a shipped recipe nor a file; fastpeer recipes lists"]),
        ("train tiny.toml --device xyzzy", ["--device must be auto, cpu, cuda or cuda:N, got 'xyzzy'"]),
        ("train tiny.toml --device meta", ["--device must be auto, cpu, cuda or cuda:N, got 'meta'"]),
        ("eval --quiet=maybe", ["--quiet must be true or false, got 'maybe'"]),
        ("train tiny.toml --quiet ''", ["argument is empty"]),
        ("train ''", ["argument is empty"]),
        ("eval ''", ["argument is empty"]),
        ("recipes xyzzy", ["holds xyzzy; fastpeer recipes lists all"]),
        ("train tiny.toml --model.student resnet9", ["resnet9", "resnet8"]),
        ("train tiny.toml --model.peer wideresnet28-10", ["wideresnet28-10", "wideresnet28x10"]),
        ("train tiny.toml --model.peer wideresnet29x10", ["wideresnet29x10", "6n+4"]),
        ("train tiny.toml --precision fp8", ["--precision", "fp8", "fp16", "bf16"]),
        ("train tiny.toml --method trads", ["trads", "trades"]),
        ("train tiny.toml --loss.reduction sum", ["--loss.reduction", "sum", "batchmean"]),
        ("train tiny.toml --selection.fraction 1.5", ["fraction", "1.5"]),
        ("train tiny.toml extra", ["extra"]),
        ("train tiny.toml -x", ["-x"]),
        ("train tiny.toml --out", ["--out"]),
        ("train cifar10_resnet18", ["cifar10_resnet18", "cifar10-resnet18"]),
        ("train cifar10-resnet18.toml", ["cifar10-resnet18"]),
        ("train ./nosuch.toml", ["nosuch.toml"]),
        ("eval --attack clean", ["--attack", "--attacks"]),
        ("eval --epsilon nan", ["--epsilon", "nan"]),
        ("prep --dataset cifar11", ["cifar11", "cifar10"]),
        ("prep", ["--dataset"]),
        ("recipes --xyzzy", ["--xyzzy", "--help"]),
    ],
)
def test_wrong_words_are_refused_in_one_line(fastpeer, tmp_path: Path, line: str, words: list[str]) -> None:
    out = ["--out", tmp_path / "run"] if line.startswith("train") and not line.endswith("--out") else []
    fastpeer(line, *out).refused(*words)
    assert not (tmp_path / "run").exists()


def flags_with_values(base: object) -> list[str]:
    """Return every flag that takes a value, but for --help."""
    return [flag for flag, opposite in flags_of(base).items() if not opposite and flag != "--help"]


COMMANDS = {
    "prep": (PrepOptions, PrepOptions(dataset="digits")),
    "eval": (EvalArguments, EvalArguments()),
    "train": (TrainArguments, TrainArguments()),
}
# Reading 80 flags takes seconds, each with all the others' grammar.
SLOW = {"train": pytest.mark.soak}


def refusal(command: str, flag: str, value: str) -> str:
    """Return the message that refuses a flag's value; empty where it is taken."""
    kind, base = COMMANDS[command]
    try:
        parse(kind, [flag, value], f"fastpeer {command}", base)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", ["", "-1", "nan", "1e999", "xyzzy"])
@pytest.mark.parametrize("command", [pytest.param(name, marks=SLOW.get(name, ())) for name in COMMANDS])
def test_every_flag_takes_a_value_or_refuses_it_by_name(command: str, value: str) -> None:
    refusals = {flag: refusal(command, flag, value) for flag in flags_with_values(COMMANDS[command][1])}
    assert [flag for flag, text in refusals.items() if text and not text.startswith(flag)] == []
    assert not any("\n" in text for text in refusals.values())


@pytest.mark.parametrize(
    "line",
    ["train --out=", "train --data=", "train --teacher=", "eval --data=", "prep --dataset digits --out="],
)
def test_an_empty_text_is_no_path(fastpeer, line: str) -> None:
    flag = line.split()[-1].removesuffix("=")
    assert fastpeer(line).refused() == f"fastpeer: {flag} must be a path, got an empty text\n"


RECIPES = {
    "syntax": (b"x = [1\n", ["not TOML"]),
    "binary": (bytes(range(256)), ["cannot be read"]),
    "key": (b"[attack]\nstep = 3\n", ["attack.step", "attack.steps"]),
    "table": (b"[atack]\nsteps = 3\n", ["atack", "attack"]),
    "misplaced": (b'student = "resnet8"\n', ["student", "model.student"]),
    "text": (b'[attack]\nsteps = "3"\n', ["attack.steps", "whole number"]),
    "boolean": (b"[train]\nepochs = true\n", ["train.epochs", "whole number"]),
    "number": (b"[data]\naugment = 1\n", ["data.augment", "true or false"]),
    "no table": (b"attack = 3\n", ["attack", "table"]),
    "list for table": (b'model = ["resnet8"]\n', ["model", "table"]),
    "fraction": (b'[attack]\nepsilon = "8/0"\n', ["attack.epsilon", "8/255"]),
    "infinite": (b"[optim]\nlr = inf\n", ["lr", "inf"]),
    "nan": (b"[optim]\nlr = nan\n", ["lr", "nan"]),
    "model": (b'[model]\nstudent = "resnet9"\n', ["resnet9", "resnet8"]),
    "precision": (b'precision = "fp8"\n', ["precision", "fp8", "bf16"]),
    "method": (b'method = ["peeraid"]\n', ["method", "quotes"]),
    "no method": (b'method = "trads"\n', ["trads", "trades"]),
    "another method's loss": (b'method = "trades"\n[loss]\nlambda2 = 1.0\n', ["loss.lambda2", "loss.beta"]),
    "like": (b'like = "cifar10-resnet19"\n', ["like", "cifar10-resnet18"]),
    "milestones": (b"[optim]\nmilestones = [1.5]\n", ["optim.milestones", "whole numbers"]),
    "order": (b"[optim]\nmilestones = [2, 1]\n", ["milestones", "increasing"]),
    "seed": (b"seed = 99999999999999999999\n", ["seed"]),
    "half a paper": (b'[paper]\nrow = "Table 9"\n', ["paper.dataset"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_wrong_recipes_are_refused_in_one_line(fastpeer, tmp_path: Path, name: str) -> None:
    content, words = RECIPES[name]
    recipe = tmp_path / "wrong.toml"
    recipe.write_bytes(content)
    fastpeer("train --data data/photos --out", tmp_path / "run", recipe).refused("wrong.toml", *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_recipe(fastpeer, tmp_path: Path) -> None:
    fastpeer("train --data data/photos --out", tmp_path / "run", tmp_path).refused(str(tmp_path))


def test_a_recipe_without_data_asks_for_them(fastpeer, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_bytes(b"")
    fastpeer("train", tmp_path / "empty.toml").refused("--data")


def test_errors_are_plain_on_terminals_too(fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in ("30", "80", "300"):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", width)
        line = fastpeer("train tiny.toml --attack.steps three --out", tmp_path / "run").refused()
        assert line == "fastpeer: --attack.steps must be a whole number, got 'three'\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train tiny.toml --attack.steps -1", "--attack.steps must be 0 or more, got -1"),
        (
            "train tiny.toml --attack.step_size 9",
            "--attack.step-size must be from 0 to 1, such as 8/255, got 9",
        ),
        ("train tiny.toml --optim.lr fast", "--optim.lr must be a number, got 'fast'"),
        ("train tiny.toml --engine.fold yes", "--engine.fold must be one of auto, on, off, got 'yes'"),
        (
            "eval run --attacks clean fgsm, pgd20 --quiet",
            "unexpected 'fgsm,': write --attacks clean,fgsm,pgd20",
        ),
        ("train tiny.toml --data.crop-scale 0.5", "--data.crop-scale is missing a value, it takes 2"),
        ("train tiny.toml --method --quiet", "--method is missing a value"),
        ("train --natural-teacher.weights --quiet", "--natural-teacher.weights is missing a value"),
        ("train tiny.toml --model.peer resnet9", "--model.peer: no network 'resnet9'"),
        ("eval --batch-size 0", "--batch-size must be 1 or more, got 0"),
        ("prep --dataset digits --size big", "--size must be a whole number, got 'big'"),
        ("prep", "--dataset is required, one of digits, cifar10, cifar100, tiny, folder: see"),
    ],
)
def test_an_error_names_the_flag(fastpeer, monkeypatch: pytest.MonkeyPatch, line: str, told: str) -> None:
    for width in ("20", "200"):
        monkeypatch.setenv("COLUMNS", width)
        assert fastpeer(line).refused().startswith(f"fastpeer: {told}")


@pytest.mark.parametrize("columns", [80, 200])
def test_recipes_names_are_never_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in recipe_names())
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.parametrize("terminal", [True, False])
def test_complaint_is_broken_between_words_on_a_terminal_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((30, 20)))
    assert main(["train", "no-such-recipe-by-this-very-long-name"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(lines).startswith("fastpeer: no-such-recipe-by-this-very-long-name is neither")
    assert (len(lines) > 1) == terminal
    # What is longer than a line, such as a path, stays whole.
    assert all(len(line) <= 30 or " " not in line for line in lines) == terminal
