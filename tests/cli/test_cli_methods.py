"""Methods by name on the command line, and the teachers that they need."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_files import metrics, weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHORT = "--train.max_steps 1 --selection.examples 4 --quiet"


def losses(run: Path) -> dict[str, float]:
    return next(one["losses"] for one in metrics(run) if "losses" in one)


def test_a_method_has_settings_of_its_own(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fastpeer(f"train tiny.toml --method trades --loss.beta 3 --precision fp64 {SHORT} --out", run).succeeded()
    written = tomllib.loads((run / "config.toml").read_text("utf-8"))
    assert (written["method"], written["loss"]) == ("trades", {"beta": 3.0, "target_grad": True})
    assert sorted(path.name for path in (run / "checkpoints/last").glob("*.safetensors")) == [
        "student.safetensors", "swa.safetensors"
    ]  # fmt: skip
    again = tmp_path / "again"
    fastpeer(f"train --loss.beta 6 {SHORT} --out", again, run / "config.toml").succeeded()
    assert losses(again)["student_ce"] == losses(run)["student_ce"]
    assert losses(again)["student_kl_clean"] == pytest.approx(2 * losses(run)["student_kl_clean"], rel=1e-9)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--method trades --loss.beda 3", ["--loss.beda", "--loss.beta"]),
        ("--method trades --loss.gamma1 3", ["--loss.gamma1"]),
        ("--method trades --loss.beta nan", ["beta", "nan"]),
        ("--method tradez", ["tradez", "trades", "package.module"]),
        ("--method nosuchpackage_.mine", ["nosuchpackage_.mine", "imported"]),
        ("--method", ["--method", "value"]),
        ("--method ard", ["ard", "needs a teacher", "--teacher PATH"]),
        ("--method mtard --teacher original", ["mtard", "natural teacher", "--natural-teacher PATH"]),
        ("--method trades --teacher original", ["--teacher", "trades has no teacher"]),
        ("--method ard --teacher original --natural-teacher original", ["--natural-teacher", "ard has no"]),
        ("--method ard --teacher nosuch", ["--teacher", "nosuch"]),
        ("--method ard --teacher original --init-peer x.pth", ["--init-peer", "ard has no peer"]),
        ("--method ard --teacher=", ["--teacher", "path"]),
        ("--method trades --loss.target-grad false --loss.beda 1", ["--loss.beda"]),
        ("--method ard --teacher original --data data/cifar10", ["4 classes", "10", "--teacher"]),
    ],
)
@pytest.mark.usefixtures("original")
def test_what_does_not_fit_the_method_is_refused_in_one_line(
    fastpeer, tmp_path: Path, line: str, words: list[str]
) -> None:
    out = [] if line == "--method" else ["--out", tmp_path / "run"]
    fastpeer(f"train tiny.toml {line}", *out).refused(*words)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="package")
def confident(workshop: Path) -> Path:
    """Weights that know something: a teacher no better than guessing is refused."""
    from fastpeer.cli.main import main

    run = workshop / "confident"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        flags = "--method natural --train.epochs 12 --optim.milestones 11 --selection.every 12 --quiet"
        assert main(["train", "tiny.toml", *flags.split(), "--out", str(run)]) == 0
    return run


@pytest.mark.usefixtures("confident")
def test_a_run_teaches_another_and_is_remembered(fastpeer, tmp_path: Path) -> None:
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    line = "train tiny.toml --method iad --loss.begin 1 --train.epochs 2 --teacher confident --quiet"
    fastpeer(f"{line} --out", run).warned("it is robust against its own attack alone")
    facts = json.loads((run / "run.json").read_text("utf-8"))
    assert facts["teachers"]["teacher"]["network"] == "resnet8"
    names = [list(one["losses"]) for one in metrics(run) if "losses" in one]
    assert names[0] == ["student_kl_teacher"]
    assert names[-1] == ["student_kl_teacher", "student_kl_clean"]

    fastpeer(f"{line} --train.max_steps 5 --out", resumed).warned()
    fastpeer("train --resume --train.max_steps 0 --quiet --out", resumed).warned()
    # At the epoch at which the table changes.
    assert weights(resumed) == weights(run)
    fastpeer("train --resume --teacher original --quiet --out", resumed).refused("is not the teacher of")


def test_a_run_does_not_delete_what_it_is_to_learn_from(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fastpeer(f"train tiny.toml --method natural {SHORT} --out", run).succeeded()
    before = weights(run)
    line = f"train tiny.toml --method rslad --force {SHORT} --out"
    fastpeer(line, run, "--teacher", run).refused("--teacher lies in", "another --out")
    fastpeer(f"train tiny.toml --force {SHORT} --out", run, "--init-student",
             run / "checkpoints/last/student.safetensors").refused("--init-student lies in")  # fmt: skip
    assert weights(run) == before
