"""Tables 2, 6 and 7 as they are printed, with the paper's figures where they are comparable."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fastpeer.config.recipes import list_recipes, load_recipe
from fastpeer.config.shipped import ShippedRecipes
from fastpeer.errors import UserError
from fastpeer.evaluation.obfuscation import ATTACKS
from fastpeer.evaluation.paper_tables import paper_table, surrogate_recipes
from fastpeer.evaluation.targets import Target
from fastpeer.evaluation.tutors import COSINES
from fastpeer.run_folder import RunFolder
from fastpeer.table_formats import report_in
from tests.evaluation.results import result


def target(recipe):
    path = Path("runs") / recipe
    return Target(f"{recipe} best", path / "best", RunFolder(path), load_recipe(recipe))


def shown(number, rows):
    file = StringIO()
    paper_table(number).show(rows, report_in("text", Console(file=file, width=300)))
    return file.getvalue()


def cells(text):
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"
    ]


@pytest.mark.parametrize(
    ("facts", "papers"),
    [
        ({}, [["", "", "55.54", "53.94", "", "0.00", ""]]),
        ({"epsilon": 4 / 255}, []),
        ({"step_size": 1 / 255}, []),
    ],
)
def test_table_7_has_the_paper_s_figures_where_the_attack_is_the_paper_s(facts, papers):
    row = [result(name, **facts) for name in ATTACKS]
    text = shown(7, {target("cifar10-resnet18"): row})
    own, *others = cells(text)
    assert own == ["cifar10-resnet18 best", *["12.50"] * 7]
    assert others == [["paper, Table 7", *figures] for figures in papers]
    assert "cifar10-resnet18 best: does anything withstand an unbounded attack? YES" in text
    assert ("steps of 1/255" in text) == ("step_size" in facts)


def test_table_7_of_other_methods_and_of_a_stopped_evaluation_stands_alone():
    text = shown(7, {target("cifar10-resnet18-trades"): [result(name) for name in ATTACKS[:3]]})
    assert cells(text) == [["cifar10-resnet18-trades best", *["12.50"] * 3, "", "", "", ""]]
    assert "checks" not in text


def test_table_6_has_the_row_of_each_method():
    recipes = {
        "cifar100-resnet18": ["44.23", "42.15", "43.61", "40.73"],
        "cifar100-resnet18-trades": ["38.84", "38.16", "38.02", "37.34"],
    }
    sources = [f"{recipe} best" for recipe in surrogate_recipes(load_recipe("cifar100-resnet18"))]
    row = [result(name, "cifar100", source=source) for name in ("fgsm", "pgd20") for source in sources]
    found = cells(shown(6, {target(recipe): row for recipe in recipes}))
    assert [line[1:] for line in found[1::2]] == list(recipes.values())
    assert all(line[1:] == ["12.50"] * 4 for line in found[::2])


@pytest.mark.parametrize(
    ("role", "paper"),
    [
        ("peer", ["75.63", "0.00", "69.19", "29.69", "0.95", "0.37", "0.35"]),
        ("teacher", ["57.30", "24.15", "39.46", "24.48", "0.96", "0.97", "0.96"]),
    ],
)
def test_table_2_has_a_row_for_a_tutor(role, paper):
    student = target("cifar100-resnet18" if role == "peer" else "cifar100-resnet18-rslad")
    named = {"target": f"{student.label}: {role}", "role": role}
    cosines = dict(zip(COSINES, (0.9, 0.5, 0.25), strict=True))
    row = [
        result("clean", "cifar100", **named), result("pgd20", "cifar100", **named),
        result("pgd20", "cifar100", **named, source=student.label, cosines=cosines),
        result("pgd20", "cifar100"),
    ]  # fmt: skip
    assert cells(shown(2, {student: row})) == [
        [named["target"], *["12.50"] * 4, "0.90", "0.50", "0.25"],
        [f"paper, Table 2, {role}", *paper],
    ]
    # Of WideResNets the paper has no such table.
    other = shown(2, {target("cifar100-wideresnet34x10"): row})
    assert "paper, Table 2" not in other


def test_the_paper_s_tables_name_its_rows():
    tables = ShippedRecipes().tables
    rows = {recipe.paper.row for recipe in list_recipes() if recipe.paper}
    for table in ("Table 6, CIFAR-100, ResNet-18", "Table 7"):
        assert tables[table].keys() <= rows
    assert [len(table) for table in tables.values()] == [3, 8, 6]


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 8])
def test_other_tables_are_rows_of_recipes(number):
    with pytest.raises(UserError, match=f"--table must be 2, 6 or 7 .*, got {number}"):
        paper_table(number)


def test_surrogates_are_trained_as_the_paper_says():
    for recipe, network in zip(
        surrogate_recipes(load_recipe("cifar100-resnet18")), ("resnet34", "mobilenetv2"), strict=True
    ):
        config = load_recipe(recipe)
        assert (config.method, config.model.student, config.attack.steps) == ("pgd-at", network, 10)
        assert (config.train.epochs, config.optim.milestones) == (200, (99, 149))
        assert (config.optim.weight_decay, config.swa.enabled) == (2e-4, False)


@pytest.mark.parametrize("form", ["csv", "json", "latex", "markdown"])
def test_tables_2_6_and_7_have_all_formats(form):
    runs = {target("cifar10-resnet18"): [result(name, source="s") for name in ATTACKS]}
    tutored = [
        result(name, target="t: peer", cosines=dict.fromkeys(COSINES, 0.5))
        for name in ["clean"] + ["pgd20"] * 3
    ]
    for number, rows in ((2, {target("cifar10-resnet18"): tutored}), (6, runs), (7, runs)):
        file = StringIO()
        report = report_in(form, Console(file=file))
        paper_table(number).show(rows, report)
        report.end()
        assert "12.5" in file.getvalue()
        if form == "json":
            (table,) = json.loads(file.getvalue())["tables"]
            assert list(table["rows"][0].values())[1] == 12.5
