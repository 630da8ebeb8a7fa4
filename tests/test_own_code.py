"""Code runs where a command line names it, and where it says --trust; never because a file names it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpeer.api import load
from fastpeer.cli.main import main
from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.own_code import import_own, trusting

CODE = """
from pathlib import Path
import torch
Path("{mark}").touch()

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = torch.nn.Linear(3, classes)

    def forward(self, images):
        return self.linear(images.mean((2, 3)))
"""
RECIPE = """
[model]
student = "strange_nets:Net"
[attack]
steps = 1
[optim]
milestones = [1]
[train]
batch_size = 16
epochs = 1
[log]
to = []
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that a stranger's module writes when it is imported."""
    mark = tmp_path / "imported"
    code = CODE.format(mark=mark)
    (tmp_path / "strange_nets.py").write_text(code, "utf-8")
    method = "from fastpeer.methods.natural import Loss, table\n"
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "method.py").write_text(code + method, "utf-8")
    monkeypatch.chdir(tmp_path)
    yield mark
    for module in [name for name in sys.modules if name.partition(".")[0] in ("strange", "strange_nets")]:
        del sys.modules[module]


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]):
    """Run a command line; return its code and what it complained of."""

    def run(words: str) -> tuple[int, str, str]:
        code = main(shlex.split(words))
        printed = capsys.readouterr()
        return code, printed.err, printed.out

    return run


@pytest.fixture
def run(mark: Path, small_dataset: Path, line) -> Path:
    """A run of the own class, trained by naming it."""
    (mark.parent / "recipe.toml").write_text(RECIPE.replace("strange_nets:Net", "resnet8"), "utf-8")
    named = "--method natural --model.student strange_nets:Net --selection.examples 4"
    code, complaint, out = line(f"train recipe.toml --data {small_dataset} --out run {named}")
    assert code == 0, complaint
    assert out.splitlines()[-1].endswith("--trust")
    del sys.modules["strange_nets"]
    mark.unlink()
    return mark.parent / "run"


def test_run_folder_is_evaluated_and_resumed_with_trust_alone(run: Path, mark: Path, line) -> None:
    evaluate = "eval run --attacks clean --examples 4 --checkpoints last --quiet"
    resume = "train --resume --out run --train.epochs 2 --quiet"
    for words in (evaluate, resume, f"{evaluate} --trust=false", "train run/config.toml --out again"):
        code, complaint, _ = line(words)
        assert code == 2
        assert "network strange_nets:Net: a file names it" in complaint
        assert complaint.count("\n") == 1
        assert "strange_nets" not in sys.modules
    assert "run: network strange_nets:Net" in line(evaluate)[1]
    with pytest.raises(UserError, match="pass trust=True"):
        load("run")
    # What is listed is not imported.
    assert [line(words)[0] for words in ("info run", "runs .")] == [0, 0]
    assert not mark.exists()
    assert line(f"{evaluate} --model strange_nets:Net")[0] == 0
    assert line(f"{resume} --trust")[:2] == (0, "")
    assert mark.exists()


def test_method_of_a_run_folder_is_not_imported(run: Path, mark: Path, line) -> None:
    text = (run / "config.toml").read_text("utf-8")
    (run / "config.toml").write_text(text.replace('"natural"', '"strange.method"'), "utf-8")
    for words in ("info run", "eval run", "train --resume --out run", "train run/config.toml"):
        code, complaint, _ = line(words)
        assert code == 2
        assert "config.toml: method strange.method: a file names it" in complaint
    assert "strange.method: a file names it" in line("runs .")[2]
    assert not mark.exists()
    assert line("info run --trust")[0] == 0
    assert mark.exists()


def test_teacher_of_a_strangers_run_is_not_imported(run: Path, mark: Path, small_dataset: Path, line) -> None:
    shutil.copytree(run, run.parent / "teacher", symlinks=True)
    code, complaint, _ = line(
        f"train recipe.toml --method ard --teacher teacher --data {small_dataset} --out student"
    )
    assert code == 2
    assert "network strange_nets:Net: a file names it" in complaint
    assert not mark.exists()


def test_programs_that_name_code_themselves_need_no_trust(mark: Path) -> None:
    assert build_model("strange_nets:Net", 3)
    with trusting({"strange_nets:Net"}):
        assert build_model("strange_nets:Net", 3)
    with trusting(set()), pytest.raises(UserError, match="pass --trust"):
        import_own("strange_nets", "network", "strange_nets:Net")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("os:_exit", "builtin_function_or_method"),
        ("os:abort", "builtin_function_or_method"),
        ("builtins:exit", "Quitter"),
        ("subprocess:Popen", "the class Popen"),
        ("os:path", "module"),
    ],
)
def test_what_is_no_network_is_not_called(name: str, found: str) -> None:
    with pytest.raises(UserError, match=f"must be a class that builds networks, got {found};"):
        build_model(name, 10)
