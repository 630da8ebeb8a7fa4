"""Settings as TOML."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.config import (
    AttackConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PaperConfig,
    SelectionConfig,
    SwaConfig,
    TeacherConfig,
    TrainConfig,
    format_fraction,
    parse_fraction,
)
from fastpeer.config.differences import other_settings
from fastpeer.config.recipes import load_recipe, parse_recipe, recipe_of_method
from fastpeer.config.shipped import ShippedRecipes
from fastpeer.config.toml import dump_recipe, setting_names
from fastpeer.errors import UserError
from fastpeer.methods import loss_settings, method_names
from fastpeer.methods.table import Reduction
from fastpeer.suggestions import did_you_mean

positive = st.floats(1e-6, 1e6)
any_float = st.floats(0, 1e300)
counts = st.integers(0, 10**6)
some = st.integers(1, 10**6)
loggers = st.sampled_from(["tensorboard", "csv", "wandb", "mlflow"])
# No path holds a zero.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
teachers = st.builds(TeacherConfig, weights=texts, network=st.sampled_from(["", "resnet8", "wideresnet16x2"]))


def losses(method):
    """Any settings of a method's own."""
    kinds = {
        float: positive,
        int: counts,
        bool: st.booleans(),
        Reduction: st.sampled_from(get_args(Reduction)),
    }
    hints = get_type_hints(loss_settings(method))
    return st.builds(loss_settings(method), **{name: kinds[hint] for name, hint in hints.items()})


def configs_of(method):
    """Any settings of a training by a method."""
    return st.builds(Config, method=st.just(method), loss=losses(method), **settings)


settings = {
    "seed": counts,
    "precision": st.sampled_from(["fp64", "fp32", "tf32", "bf16", "fp16"]),
    "model": st.builds(
        ModelConfig,
        student=st.sampled_from(["resnet8", "wideresnet16x2"]),
        mean=st.just((0.5, 0.25, 0.125)),
        std=st.tuples(positive, positive, positive),
    ),
    "data": st.builds(
        DataConfig, dataset=texts, augment=st.booleans(), shuffle=st.booleans(), drop_last=st.booleans()
    ),
    "attack": st.builds(
        AttackConfig,
        epsilon=st.floats(0, 1) | st.integers(0, 255).map(lambda n: n / 255),
        step_size=st.floats(0, 1),
        steps=counts,
        start=st.sampled_from(["method", "gaussian", "uniform", "none"]),
        start_std=any_float,
        clamp_start=st.sampled_from(["method", "on", "off"]),
        batchnorm=st.sampled_from(["method", "eval", "train"]),
    ),
    "teacher": teachers,
    "natural_teacher": teachers,
    "optim": st.builds(
        OptimConfig,
        lr=any_float,
        milestones=st.sets(counts, max_size=4).map(lambda s: tuple(sorted(s))),
        freeze=st.lists(texts, max_size=2).map(tuple),
    ),
    "swa": st.builds(SwaConfig, enabled=st.booleans(), start=st.integers(-1, 300)),
    "train": st.builds(TrainConfig, batch_size=some, epochs=some, max_steps=counts),
    "selection": st.builds(
        SelectionConfig,
        split=st.sampled_from(["val", "test"]),
        fraction=st.floats(0.001, 0.999),
        examples=counts,
        steps=some,
        every=some,
        batch_size=some,
    ),
    "log": st.builds(LogConfig, every=some, seconds=any_float, to=st.sets(loggers).map(tuple)),
    "paper": st.none()
    | st.builds(
        PaperConfig, row=texts, dataset=texts, clean=positive, fgsm=positive, pgd20=positive, aa=positive
    ),
}
configs = st.sampled_from(method_names()).flatmap(configs_of)


@given(configs)
def test_any_settings_come_back_from_toml_bit_for_bit(config):
    assert parse_recipe(dump_recipe(config), "dumped") == config


@pytest.mark.parametrize("method", method_names())
def test_every_method_s_default_settings_come_back_from_toml(method):
    config = Config(method=method)
    assert type(config.loss) is loss_settings(method)
    assert parse_recipe(dump_recipe(config), "dumped") == config
    assert parse_recipe(f"method = '{method}'", "mine.toml") == config


@given(st.floats(-1e300, 1e300) | st.integers(-300, 300).map(lambda n: n / 255))
def test_numbers_and_fractions_are_exact(value):
    assert parse_fraction(format_fraction(value)) == value


@pytest.mark.parametrize(
    ("text", "to"),
    [
        ("tensorboard = true", ("tensorboard",)),
        ("tensorboard = false", ()),
        ("tensorboard = false\nto = ['csv', 'tensorboard']", ("csv",)),
        ("tensorboard = true\nto = ['csv']", ("tensorboard", "csv")),
    ],
)
def test_log_tensorboard_of_older_recipes_is_read(text, to):
    assert parse_recipe(f"[log]\nevery = 7\n{text}", "older.toml").log == LogConfig(every=7, to=to)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (8, 8.0), ("0", 0.0)])
def test_fractions_are_read(text, value):
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["8/0", "8/", "a", "", True, None, [8], "8/255/2", "nan", "inf", "1e999"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="must be a number or a fraction"):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("[attack]\nstep = 3", ["attack.step", "attack.steps"]),
        ("[atack]\nsteps = 3", ["atack", "attack"]),
        ("sed = 3", ["unknown key sed", "seed"]),
        ("[loss]\nlambda4 = 3", ["loss.lambda4", "loss.lambda1"]),
        ("attack = 3", ["attack", "[attack]"]),
        ("[attack]\nsteps = 2.5", ["attack.steps", "whole number", "2.5"]),
        ("[attack]\nsteps = -1", ["steps", "0 or more", "-1"]),
        ("[attack]\nepsilon = 'x'", ["attack.epsilon", "8/255"]),
        ("[data]\naugment = 1", ["data.augment", "true or false"]),
        ("[data]\ndataset = 1", ["data.dataset", "quotes"]),
        ("[loss]\nreduction = 'sum'", ["loss.reduction", "mean, batchmean"]),
        ("[loss]\nreduction = [1]", ["loss.reduction", "mean, batchmean"]),
        ("[loss]\ntemperature = 0.0", ["temperature", "more than 0"]),
        ("[optim]\nlr = true", ["optim.lr", "number"]),
        ("[optim]\nlr = nan", ["lr", "nan"]),
        ("[optim]\nmilestones = [3, 2]", ["milestones", "increasing", "[3, 2]"]),
        ("[optim]\nmilestones = [1.5]", ["optim.milestones", "list of whole numbers"]),
        ("[optim]\nmilestones = 3", ["optim.milestones", "list of whole numbers"]),
        ('[optim]\nfreeze = "student.*"', ["optim.freeze", "list of texts", "'student.*'"]),
        ("[optim]\nfreeze = [1]", ["optim.freeze", "list of texts"]),
        ("[log]\nto = ['csv', 'wandbb']", ["log.to", "tensorboard, csv, wandb, mlflow", "'wandbb'"]),
        ("[log]\nto = 'csv'", ["log.to", "must be a list", "'csv'"]),
        ("[log]\nto = ['csv', 'csv']", ["log.to must hold each name once", "csv, csv"]),
        ("[log]\nseconds = -1", ["log.seconds must be 0 or more", "-1"]),
        ("[log]\ntensorboard = 1", ["log.tensorboard must be true or false", "1"]),
        ("[selection]\nfraction = 1.0", ["fraction", "between 0 and 1"]),
        ("[model]\nstudent = 'resnet19'", ["resnet19", "resnet18"]),
        ("[paper]\nrow = 'x'", ["paper", "missing"]),
        ("seed = ", ["not TOML"]),
        ("seed = -1", ["mine.toml: seed must be 0 or more"]),
        ("lambda2 = 3", ["unknown key lambda2", "loss.lambda2"]),
        ("epochs = 3", ["unknown key epochs", "train.epochs"]),
        ("[train]\nlr = 3", ["unknown key train.lr", "did you mean optim.lr?"]),
        ("lik = 'demo'", ["unknown key lik", "like"]),
        ("qqqqqqqq = 3", ["unknown key qqqqqqqq"]),
        ("[attack]\nqqqqqqqq = 3", ["attack.qqqqqqqq", "attack.st"]),
        ("method = 'trades'\n[loss]\nbetta = 3", ["loss.betta", "trades", "loss.beta"]),
        ("method = 'trades'\n[loss]\nlambda2 = 3", ["loss.lambda2", "trades", "loss.beta"]),
        ("method = 'trades'\n[attack]\nbeta = 3", ["attack.beta", "loss.beta"]),
        ("method = 'natural'\n[loss]\nbeta = 3", ["loss.beta", "natural", "no settings of its own"]),
        ("method = 'iad'\n[loss]\nbegin = 1.5", ["loss.begin", "whole number"]),
        ("method = 'trads'", ["trads", "trades"]),
        ("method = 3", ["method", "quotes", "3"]),
        ("method = 'no.such.module'", ["no.such.module", "cannot be imported"]),
        ("like = 'cifar10-resnet'", ["like", "shipped recipe", "cifar10-resnet18", "'cifar10-resnet'"]),
        ("like = ['demo']", ["like", "shipped recipe", "demo"]),
        ("like = 'demo'\n[attack]\nstep = 3", ["attack.step", "attack.steps"]),
        ("like = 'demo'\nloss = 3", ["loss", "[loss]"]),
    ],
)  # fmt: skip
def test_error_says_in_one_line_where_and_what(text, mentions):
    with pytest.raises(UserError) as refusal:
        parse_recipe(text, "mine.toml")
    message = str(refusal.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    assert len(message) < 300
    assert [mention for mention in mentions if mention not in message] == [], message


def test_recipe_is_found_by_path_and_a_misspelt_name_gets_the_nearest(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 7\n")
    assert load_recipe(str(file)).seed == 7
    with pytest.raises(UserError, match="tiny-resnet18"):
        load_recipe("tiny-resnet8")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"mine\.toml: cannot be read"):
        load_recipe(str(file))


def test_what_is_not_said_is_as_in_the_recipe_it_is_like():
    mine = parse_recipe(
        "like = 'cifar100-resnet18-rslad'\n[loss]\nalpha = 0.5\n[optim]\nlr = 0.2", "mine.toml"
    )
    origin = load_recipe("cifar100-resnet18-rslad")
    loss, optim = replace(origin.loss, alpha=0.5), replace(origin.optim, lr=0.2)
    assert mine == replace(origin, loss=loss, optim=optim, paper=None)


def test_another_method_inherits_all_but_the_loss_and_the_figures():
    mine = parse_recipe("like = 'cifar100-resnet18'\nmethod = 'trades'", "mine.toml")
    origin = load_recipe("cifar100-resnet18")
    assert mine == replace(origin, method="trades", loss=loss_settings("trades")(), paper=None)
    same = parse_recipe("like = 'cifar100-resnet18'\nmethod = 'peeraid'", "mine.toml")
    assert same == replace(origin, paper=None)


def test_figures_are_only_a_recipe_s_own():
    text = (
        "like = 'cifar10-resnet18'\n[paper]\nrow = 'x'\ndataset = 'y'\nclean = 1\nfgsm = 2\npgd20 = 3\naa = 4"
    )
    assert parse_recipe(text, "mine.toml").paper.row == "x"


def test_shipped_recipes_that_are_like_one_another_are_refused(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    for name in ("paper", "common", "tables"):
        (tmp_path / f"{name}.toml").write_text("")
    for name, like in (("alpha", "beta"), ("beta", "alpha"), ("self", "self")):
        (tmp_path / f"{name}.toml").write_text(f"like = '{like}'\n")
    monkeypatch.setattr("fastpeer.config.shipped.resources.files", lambda package: tmp_path)
    monkeypatch.setattr("fastpeer.config.recipes.shipped_recipes", ShippedRecipes)
    for name in ("alpha", "beta", "self"):
        with pytest.raises(UserError, match="like must be a shipped recipe"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("recipe", "method", "found"),
    [
        ("cifar10-resnet18", "trades", "cifar10-resnet18-trades"),
        ("cifar10-resnet18", "iad-ii", "cifar10-resnet18-iad-ii"),
        ("cifar10-resnet18-trades", "peeraid", "cifar10-resnet18"),
        ("cifar10-resnet18-iad-ii", "iad", "cifar10-resnet18-iad"),
        ("cifar10-resnet18-trades", "trades", "cifar10-resnet18-trades"),
        ("cifar10-resnet18-kdiga-ard", "kdiga", "cifar10-resnet18-kdiga-ard"),
        ("cifar10-resnet18-kdiga-ard", "trades", "cifar10-resnet18-trades"),
        ("cifar10-mobilenetv2", "cat", "cifar10-mobilenetv2-cat"),
        ("tiny-wideresnet34x10-natural", "pgd-at", "tiny-wideresnet34x10-pgd-at"),
        ("tiny-resnet18-trades-swa", "rslad", "tiny-resnet18-rslad-swa"),
        ("tiny-resnet18-trades-swa", "peeraid", "tiny-resnet18"),
        ("tiny-resnet18-without-swa", "trades", "tiny-resnet18-trades"),
        ("cifar100-resnet18-wide-peer", "rslad", "cifar100-resnet18-rslad-wide-teacher"),
        ("cifar100-resnet18-akd2-wide-teacher", "peeraid", "cifar100-resnet18-wide-peer"),
    ],
)
def test_a_recipe_for_another_method_is_that_method_s(recipe, method, found):
    assert recipe_of_method(recipe, method) == load_recipe(found)


@pytest.mark.parametrize(("recipe", "method"), [("demo", "natural"), ("tiny-resnet18", "mtard")])
def test_where_a_method_has_no_recipe_its_own_loss_is_taken(recipe, method):
    expected = replace(load_recipe(recipe), method=method, loss=loss_settings(method)(), paper=None)
    assert recipe_of_method(recipe, method) == expected


def test_a_file_for_another_method_keeps_all_but_the_loss(tmp_path):
    file = tmp_path / "cifar10-resnet18.toml"
    file.write_text("seed = 7\n[loss]\nlambda1 = 3.0\n")
    assert recipe_of_method(str(file), "trades") == Config(seed=7, method="trades")
    with pytest.raises(UserError, match="trades"):
        recipe_of_method(str(file), "trads")


def test_settings_that_depart_from_the_row_are_named():
    config = load_recipe("cifar10-resnet18-rslad")
    assert other_settings(config) == []
    elsewhere = replace(config, seed=1, teacher=TeacherConfig(weights="runs/teacher"))
    assert other_settings(elsewhere) == []
    other = replace(config, loss=replace(config.loss, scale=2.0), teacher=TeacherConfig(network="resnet8"))
    assert sorted(other_settings(other)) == ["loss.scale", "teacher.network"]
    assert "method" in other_settings(replace(config, method="trades", loss=loss_settings("trades")()))
    assert other_settings(replace(other, paper=None)) == []


def test_settings_are_compared_whatever_the_row_is_called():
    config = load_recipe("tiny-resnet18")
    renamed = replace(config, train=TrainConfig(epochs=7), paper=replace(config.paper, row="Table 1"))
    assert other_settings(renamed) == ["train.epochs"]


def test_setting_names_are_dotted():
    assert {"seed", "attack.steps", "optim.milestones", "selection.split"} <= set(setting_names())


def test_all_words_are_suggested_where_none_is_like_it():
    assert did_you_mean("stpes", ["steps", "epsilon"]) == "did you mean steps?"
    assert did_you_mean("q", ["steps", "epsilon"]) == "must be one of steps, epsilon"


def test_of_a_hundred_words_none_is_suggested_that_is_not_near():
    assert did_you_mean("q", map(str, range(100)), "q --help lists all") == "q --help lists all"
