"""Methods by their names: shipped ones, one's own, and what is none."""

import contextlib
import sys

import pytest

import fastpeer.methods
from fastpeer.cli.main import main
from fastpeer.config import Config
from fastpeer.config.recipes import parse_recipe
from fastpeer.config.toml import dump_recipe
from fastpeer.errors import UserError
from fastpeer.methods import build_table, loss_settings, method_names
from fastpeer.methods.natural import Loss as NaturalLoss
from fastpeer.methods.trades import Loss as TradesLoss

OWN = '''
"""Plain training, weighted."""
from dataclasses import dataclass

from fastpeer.methods import LossSettings, Method
from fastpeer.methods.table import CrossEntropy, Forward


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """Settings of my own."""

    weight: float = 1.0
    """What a label weighs."""
    doubled: bool = False
    """Twice of it."""


def table(loss):
    clean = Forward("student", "clean")
    weight = 2 * loss.weight if loss.doubled else loss.weight
    return Method(("student",), (clean,), {"mine": CrossEntropy(clean, weight)})
'''
NO_LOSS = "def table(loss): pass\n"
OTHER_LOSS = "class Loss: pass\ndef table(loss): pass\n"
HEAD = OWN[: OWN.index("def table")]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder that one works in; a module written there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    known, path = set(sys.modules), list(sys.path)
    package = tmp_path / "ownpackage"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def write(text, name="mine"):
        (package / f"{name}.py").write_text(text)
        return f"ownpackage.{name}"

    yield write
    assert sys.path == path
    for name in set(sys.modules) - known:
        if name.startswith("ownpackage"):
            del sys.modules[name]


def test_names_are_those_of_the_files():
    assert method_names() == [
        "adaad", "akd2", "ard", "cat", "iad", "iad-ii", "kdiga", "mtard", "natural", "peeraid", "pgd-at",
        "rslad", "trades",
    ]  # fmt: skip
    assert "table" not in method_names()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("trade", "trades"),
        ("iad_ii", "iad-ii"),
        ("pgd_at", "pgd-at"),
        ("rsladd", "rslad"),
        ("peer-aid", "peeraid"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(UserError, match=rf"no method '{name}'; the nearest are .*\b{near}\b") as refusal:
        loss_settings(name)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"package\.module"):
        Config(method=name)


@pytest.mark.parametrize("name", ["", "xyzzy", "Ärger"])
def test_what_resembles_nothing_is_refused_too(name):
    with pytest.raises(UserError, match=r"no method .* the methods are adaad, .*trades"):
        loss_settings(name)


def test_settings_of_another_method_are_refused():
    with pytest.raises(UserError, match="not those of the method trades"):
        build_table("trades", NaturalLoss())
    with pytest.raises(UserError, match="not those of the method natural"):
        _ = Config(method="natural", loss=TradesLoss()).table


def test_ones_own_method_is_taken_from_the_working_folder(own):
    name = own(OWN)
    config = parse_recipe(f'method = "{name}"\n[loss]\nweight = 3\ndoubled = true\n', "own.toml")
    assert config.loss == loss_settings(name)(weight=3.0, doubled=True)
    assert config.table.terms["mine"].weight == 6.0
    assert parse_recipe(dump_recipe(config), "again") == config
    with pytest.raises(
        UserError, match=rf"own.toml: unknown key loss.wait of the method {name}.*loss.weight"
    ):
        parse_recipe(f'method = "{name}"\n[loss]\nwait = 3\n', "own.toml")
    with pytest.raises(UserError, match=r"own.toml: loss.weight must be a number, got 'x'"):
        parse_recipe(f'method = "{name}"\n[loss]\nweight = "x"\n', "own.toml")
    assert name not in method_names()


def test_ones_own_settings_stand_in_the_help(own, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "demo", "--method", own(OWN), "--loss.weight", "2", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--loss.weight" in shown
    assert "What a label weighs." in shown
    assert "--loss.doubled" in shown
    assert "--loss.gamma1" not in shown


def test_a_wrong_flag_of_ones_own_is_refused_with_the_nearest(own, capsys):
    assert main(["train", "demo", "--method", own(OWN), "--loss.wieght", "2"]) != 0
    assert "unknown flag --loss.wieght; did you mean --loss.weight?" in capsys.readouterr().err
    assert main(["train", "demo", "--method", own(OWN), "--loss.weight", "nan"]) != 0
    assert "weight" in capsys.readouterr().err


NO_TABLE = r"has no function table\(loss\) that returns a Method"
BROKEN = {
    "syntax": ("def table(:\n", r"cannot be imported \(.*invalid syntax"),
    "import": ("import nosuchmodule_\n", r"cannot be imported \(.*nosuchmodule_"),
    "raises": ("raise ValueError('first\\nsecond')\n", r"cannot be imported \("),
    "no settings": (NO_LOSS, "has no class Loss derived from LossSettings"),
    "other settings": (OTHER_LOSS, "has no class Loss derived from LossSettings"),
    "an instance": (f"{HEAD}Loss = Loss()\n", "has no class Loss derived from LossSettings"),
    "no table": (HEAD, NO_TABLE),
    "no function": (f"{HEAD}table = 3\n", NO_TABLE),
    "no method": (f"{HEAD}def table(loss): return 3\n", r"table\(loss\) returns no Method"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_module_is_one_line(own, kind):
    text, words = BROKEN[kind]
    with pytest.raises(UserError, match=words) as refusal:
        _ = Config(method=own(text)).table
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}def table(loss): return 1 / 0\n",
        f"{HEAD}def table(loss): raise KeyError('first\\nsecond')\n",
        OWN.replace("weight: float = 1.0", "weight: float"),
    ],
    ids=["table", "two lines", "settings without a default"],
)
def test_what_a_module_raises_when_it_is_used_is_one_line(own, text):
    with pytest.raises(UserError) as refusal:
        _ = Config(method=own(text)).table
    assert "\n" not in str(refusal.value)


def test_a_module_that_is_not_there_is_one_line(own):
    own(OWN)
    for name in ("ownpackage.other", "nosuchpackage_.mine", ".mine", "ownpackage.", "..", "own package.x"):
        with pytest.raises(UserError, match=r"cannot be imported|no method") as refusal:
            loss_settings(name)
        assert "\n" not in str(refusal.value)


def test_the_working_folder_does_not_stay_on_the_path(own):
    before = list(sys.path)
    loss_settings(own(OWN))
    with contextlib.suppress(UserError):
        loss_settings(own("1 / 0\n", "broken"))
    assert sys.path == before


def test_no_method_is_imported_for_another(monkeypatch):
    """So that a start takes no longer, the more methods there are."""
    imported = []
    original = fastpeer.methods.importlib.import_module

    def noted(name, *rest):
        imported.append(name)
        return original(name, *rest)

    monkeypatch.setattr(fastpeer.methods.importlib, "import_module", noted)
    assert isinstance(Config(method="trades").loss, TradesLoss)
    assert set(imported) == {"fastpeer.methods.trades"}
