"""The recipes that come with fastpeer, against the paper's tables and the released codes' settings."""

import functools
import math
from dataclasses import astuple, replace
from importlib import resources

import pytest

from fastpeer.config import (
    AttackConfig,
    Config,
    DataConfig,
    ModelConfig,
    SelectionConfig,
    TeacherConfig,
    recipes,
)
from fastpeer.config.recipes import list_recipes, recipe_names
from fastpeer.config.shipped import RecipeName, ShippedRecipes
from fastpeer.config.toml import read_table
from fastpeer.methods import build_table, loss_settings, method_names
from tests.config.paper_tables import paper_rows

load_recipe = functools.cache(recipes.load_recipe)
ROWS = paper_rows()
NAMES = recipe_names()
WITHOUT_ROW = {
    "demo", "cifar10-mobilenetv2-natural", "cifar10-mobilenetv2-trades",
    "cifar100-mobilenetv2-pgd-at-surrogate", "cifar100-resnet34-pgd-at-surrogate",
    *(
        f"{data}-resnet18-{method}"
        for data in ("cifar10", "cifar100")
        for method in ("ard", "iad-ii", "kdiga", "kdiga-ard", "mtard")
    ),
}  # fmt: skip

PLANS = {
    # method: epochs, milestones, weight decay, batch size, first averaged epoch; for CIFAR-10
    "peeraid": (300, (214, 259, 284), 2e-4, 128, 214),
    "natural": (300, (214, 259, 284), 2e-4, 128, None),
    "pgd-at": (300, (214, 259, 284), 2e-4, 128, None),
    "trades": (76, (74, 89, 99), 2e-4, 128, None),
    "akd2": (200, (50, 150), 5e-4, 128, 55),
    "rslad": (300, (215, 260, 285), 2e-4, 128, None),
    "mtard": (300, (215, 260, 285), 2e-4, 128, None),
    "iad": (200, (100,), 2e-4, 128, None),
    "iad-ii": (200, (100,), 2e-4, 128, None),
    "ard": (200, (100,), 2e-4, 128, None),
    "kdiga": (200, (100,), 2e-4, 128, None),
    "cat": (200, (99, 149), 5e-4, 128, None),
    "adaad": (200, (100, 150), 5e-4, 128, None),
}
TINY_PLANS = {"resnet18": (200, (99, 149)), "wideresnet34x10": (100, (49, 79))}
OTHER_LOSS = {
    # What is not a method's default (the released CIFAR-10 setting), by data and method.
    ("cifar100", "peeraid"): {"gamma2": 1.0},
    ("cifar100", "rslad"): {"scale": 10.0},
    ("cifar100", "mtard"): {"scale": 10.0},
    ("cifar100", "adaad"): {"reduction": "batchmean"},
    ("tiny", "peeraid"): {
        "temperature": 1.0, "lambda1": 0.035, "lambda2": 35.0, "lambda3": 20.0, "gamma2": 100.0
    },
    ("tiny", "rslad"): {"scale": 20.0},
    ("tiny", "adaad"): {"reduction": "batchmean"},
}  # fmt: skip
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
SHIPPED = [name for name in NAMES if name != "demo"]
COMPOSED = [parts for parts in map(ShippedRecipes().split, SHIPPED) if parts is not None]


def read_part(name):
    """One of the files from which recipes are composed."""
    return read_table((resources.files("fastpeer.recipes") / name).read_text("utf-8"), name)


def test_every_row_of_the_tables_has_a_recipe_and_no_other_recipe_has_figures():
    assert len(ROWS) == 74
    assert set(NAMES) == {*ROWS, *WITHOUT_ROW}
    assert {entry.name for entry in list_recipes() if entry.paper is not None} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_the_paper_s(name):
    paper = load_recipe(name).paper
    table, figures = ROWS[name]
    assert (paper.dataset, paper.row.split(",")[0]) == (name.split("-")[0], table)
    assert (paper.clean, paper.fgsm, paper.pgd20, paper.aa) == figures


def test_no_two_rows_share_their_name_or_their_figures():
    papers = [entry.paper for entry in list_recipes() if entry.paper is not None]
    assert len({paper.row for paper in papers}) == len(papers)
    assert len({astuple(replace(paper, row="")) for paper in papers}) == len(papers)


def test_a_list_says_what_the_recipes_say():
    for entry in list_recipes():
        config = load_recipe(entry.name)
        assert (entry.method, entry.paper) == (config.method, config.paper)


@pytest.mark.parametrize("name", SHIPPED)
def test_name_says_data_network_and_method(name):
    config = load_recipe(name)
    data, network, *rest = name.split("-")
    method = "-".join(rest)
    if method in ("", "wide-peer", "without-swa"):
        method = "peeraid"
    for ending in ("-swa", "-wide-teacher", "-surrogate"):
        method = method.removesuffix(ending)
    assert config.method == ("kdiga" if method == "kdiga-ard" else method)
    assert (config.data.dataset, config.model.student) == (data, network)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny-resnet18", ("tiny", "resnet18", "peeraid", "")),
        ("tiny-resnet18-without-swa", ("tiny", "resnet18", "peeraid", "without-swa")),
        ("tiny-resnet18-pgd-at-swa", ("tiny", "resnet18", "pgd-at", "swa")),
        ("cifar100-resnet18-iad-ii", ("cifar100", "resnet18", "iad-ii", "")),
        ("cifar100-resnet18-iad-wide-teacher", ("cifar100", "resnet18", "iad", "wide-teacher")),
        ("cifar10-resnet18-kdiga-ard", ("cifar10", "resnet18", "kdiga", "ard")),
        ("demo", None),
    ],
)
def test_parts_of_a_name(name, parts):
    assert ShippedRecipes().split(name) == (parts and RecipeName(*parts))


def test_a_name_is_made_of_its_parts():
    assert [str(parts) for parts in COMPOSED] == SHIPPED


def test_every_method_has_a_file_of_its_name():
    assert {read_part(f"methods/{method}.toml")["method"] for method in method_names()} == set(method_names())
    files = (resources.files("fastpeer.recipes") / "methods").iterdir()
    assert {file.name for file in files} == {f"{method}.toml" for method in method_names()}


@pytest.mark.parametrize("method", method_names())
def test_every_section_concerns_a_recipe_and_every_variant_has_one(method):
    common, own = (read_part(name).get("for", {}) for name in ("common.toml", f"methods/{method}.toml"))
    recipes = [parts for parts in COMPOSED if parts.method == method]
    assert set(own) <= {section for parts in recipes for section in parts.sections}
    assert set(common) <= {section for parts in COMPOSED for section in parts.sections}
    assert {parts.variant for parts in recipes} - {""} <= {*common, *own}


@pytest.mark.parametrize("name", SHIPPED)
def test_plan_is_the_released_one(name):
    config = load_recipe(name)
    data, network = name.split("-")[:2]
    epochs, milestones, decay, batch, averaged = PLANS[config.method]
    if data == "tiny" and config.method != "akd2":
        epochs, milestones = TINY_PLANS[network]
        averaged = milestones[0] if config.method == "peeraid" else None
    if name.endswith("-surrogate"):
        epochs, milestones = 200, (99, 149)
    if name.endswith("-swa"):
        averaged = None if "without" in name else milestones[0]
    if data == "cifar100" and config.method in ("ard", "kdiga"):
        batch = 256
    assert (config.train.epochs, config.optim.milestones) == (epochs, milestones)
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, decay)
    assert (config.train.batch_size, config.swa_start) == (batch, averaged)


@pytest.mark.parametrize("name", SHIPPED)
def test_loss_is_the_released_one(name):
    config = load_recipe(name)
    data, network = name.split("-")[:2]
    other = dict(OTHER_LOSS.get((data, config.method), {}))
    if name.endswith("kdiga-ard"):
        other["adversarial"] = True
    if (data, network, config.method) == ("tiny", "wideresnet34x10", "iad"):
        other["begin"] = 30
    assert config.loss == loss_settings(config.method)(**other)
    assert build_table(config.method, config.loss).trained


@pytest.mark.parametrize("name", SHIPPED)
def test_networks(name):
    config = load_recipe(name)
    wide = name.endswith(("-wide-peer", "-wide-teacher"))
    if "peer" in build_table(config.method, config.loss).trained:
        assert config.model.peer == ("wideresnet34x10" if wide else config.model.student)
    elif wide:
        assert config.teacher.network == "wideresnet34x10"
    else:
        assert config.teacher == config.natural_teacher == TeacherConfig()
    mean, std = NORMALIZATION[name.split("-")[0]] if config.method == "akd2" else ((), ())
    assert (config.model.mean, config.model.std) == (mean, std)


@pytest.mark.parametrize("name", SHIPPED)
def test_all_else_is_default_but_the_selection(name):
    config = load_recipe(name)
    assert config.selection == SelectionConfig(split="test")
    assert config.data == DataConfig(dataset=name.split("-")[0])
    default = Config()
    # 16/255/10: the default of KDIGA's released code, which hands it to this attack.
    step = 16 / 2550 if name.endswith("kdiga-ard") else 2 / 255
    assert config.attack == replace(default.attack, step_size=step)
    for section in ("seed", "precision", "engine", "log"):
        assert getattr(config, section) == getattr(default, section)


def test_default_attack_is_the_released_one():
    assert Config().attack == AttackConfig(epsilon=8 / 255, step_size=2 / 255, steps=10, start_std=0.001)


def test_every_method_has_a_recipe():
    assert {load_recipe(name).method for name in NAMES} == set(method_names())


def test_a_divergence_weighs_the_same_for_10_100_and_200_classes():
    # Divergences that are averaged over the classes too, times the scale.
    scales = {"cifar10": 10, "cifar100": 100, "tiny": 200}
    weights = {
        data: load_recipe(f"{data}-resnet18-rslad").loss.scale / classes for data, classes in scales.items()
    }
    assert all(math.isclose(weight, 0.1) for weight in weights.values())


def test_demo():
    demo = load_recipe("demo")
    assert (demo.data.dataset, demo.train.epochs, demo.selection.split) == ("digits", 24, "val")
    assert demo.model == ModelConfig(student="resnet8", peer="resnet8")
