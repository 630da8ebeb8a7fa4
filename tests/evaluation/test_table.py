"""The printed table: each run's rows, and the paper's figures below them."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fastpeer.config import AttackConfig, Config, OptimConfig
from fastpeer.config.recipes import load_recipe
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.table import show_results
from fastpeer.evaluation.targets import Target
from fastpeer.run_folder import RunFolder
from fastpeer.table_formats import report_in

ATTACKS = ("clean", "fgsm", "pgd20", "pgd10", "aa")


def target(run: str, kind: str, config: Config | None) -> Target:
    path = Path("runs") / run
    return Target(f"{run} {kind}", path / kind, RunFolder(path) if config else None, config)


def result(
    attack: str,
    dataset: str = "cifar10",
    epsilon: float = 8 / 255,
    pixels: str = "official pixels",
    norm: str = "linf",
) -> Result:
    return Result(
        target="", weights_sha256="", attack=attack, correct=1, images=8, total=8, epsilon=epsilon,
        step_size=2 / 255, seed=0, batch_size=8, targets=9 if attack == "aa" else None, dataset=dataset,
        data_sha256="", seconds=1.0, torch="", pixels=pixels, norm=norm,
    )  # fmt: skip


def shown(*targets: Target, width: int = 200, **facts) -> str:
    file = StringIO()
    rows = {student: [result(attack, **facts) for attack in ATTACKS] for student in targets}
    show_results(rows, report_in("text", Console(file=file, width=width)))
    return file.getvalue()


def sections(text: str) -> list[list[list[str]]]:
    """The table's cells, by its sections."""
    found: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("┡", "├")):
            found.append([])
        elif line.startswith("│"):
            found[-1].append([cell.strip() for cell in line.strip("│").split("│")])
    return found


def test_the_paper_s_row_stands_below_the_run_s_in_the_same_columns():
    config = load_recipe("cifar10-resnet18-trades")
    (rows,) = sections(shown(target("mine", "last", config), target("mine", "best", config)))
    own = ["12.50"] * 5
    assert rows == [
        ["mine last", *own],
        ["mine best", *own],
        ["paper, Table 1, CIFAR-10, ResNet-18, TRADES", "81.47", "57.75", "52.92", "", "49.35"],
    ]


def test_runs_of_several_methods_have_a_section_and_figures_each():
    methods = {"TRADES": "cifar10-resnet18-trades", "RSLAD": "cifar10-resnet18-rslad"}
    runs = [target(name, "best", load_recipe(name)) for name in (*methods.values(), "cifar10-resnet18")]
    found = sections(shown(*runs))
    assert [[row[0] for row in rows] for rows in found] == [
        ["cifar10-resnet18-trades best", "paper, Table 1, CIFAR-10, ResNet-18, TRADES"],
        ["cifar10-resnet18-rslad best", "paper, Table 1, CIFAR-10, ResNet-18, RSLAD"],
        ["cifar10-resnet18 best", "paper, Table 1, CIFAR-10, ResNet-18, PeerAiD"],
    ]
    assert [rows[1][1] for rows in found] == ["81.47", "81.00", "85.01"]


def test_students_of_a_run_stand_together_whatever_the_order():
    config = load_recipe("cifar10-resnet18")
    other = target("other", "best", replace(config, paper=None))
    found = sections(shown(target("mine", "last", config), other, target("mine", "best", config)))
    assert [[row[0].split(",")[0] for row in rows] for rows in found] == [
        ["mine last", "mine best", "paper"],
        ["other best"],
    ]


def test_weights_of_no_run_stand_alone():
    found = sections(shown(target("one", "last", None), target("two", "last", None)))
    assert [[row[0] for row in rows] for rows in found] == [["one last"], ["two last"]]


@pytest.mark.parametrize("facts", [{"dataset": "photos"}, {"epsilon": 4 / 255}, {"norm": "l2"}])
def test_what_the_paper_did_not_measure_is_not_compared(facts):
    text = shown(target("mine", "best", load_recipe("cifar10-resnet18")), **facts)
    assert "Table 1" not in text
    assert "85.01" not in text


def test_other_settings_are_noted_for_the_run_that_has_them():
    config = load_recipe("cifar10-resnet18-trades")
    other = replace(config, optim=OptimConfig(lr=0.2, milestones=config.optim.milestones))
    text = shown(target("same", "best", config), target("other", "best", other))
    notes = [line for line in text.splitlines() if "not the paper's settings" in line]
    assert notes == [
        "runs/other: not the paper's settings (Table 1, CIFAR-10, ResNet-18, TRADES): other optim.lr"
    ]


def test_the_norm_stands_in_the_title_and_names_the_single_step():
    student = target("mine", "best", None)
    text = shown(student, norm="l2", epsilon=0.5)
    assert "test images of cifar10, L2 epsilon 0.5, fp32" in text
    assert "FGM " in text
    assert "FGSM" not in text
    text = shown(student)
    assert "test images of cifar10, L-infinity epsilon 8/255, fp32" in text
    assert "FGSM" in text


def test_norms_are_never_in_one_table():
    file = StringIO()
    rows = {target(norm, "best", None): [result("pgd20", norm=norm)] for norm in ("linf", "l2")}
    show_results(rows, report_in("text", Console(file=file, width=200)))
    assert file.getvalue().count("accuracy in % on") == 2


def test_a_training_in_another_norm_is_named_first_and_how_to_attack_in_its_ball():
    config = load_recipe("cifar10-resnet18-trades")
    other = replace(config, attack=AttackConfig(norm="l2", epsilon=128 / 255, step_size=0.1))
    text = shown(target("mine", "best", other))
    assert "): other attack.norm, attack.epsilon, attack.step_size\n" in text
    assert "attacked here in L-infinity (--norm l2 --epsilon 128/255 --step-size 0.1)" in text
    assert "attacked here" not in shown(target("mine", "best", other), norm="l2")
    assert "attacked here" not in shown(target("mine", "best", config))


def test_non_finite_logits_stand_with_their_figure():
    student = target("mine", "best", None)
    row = [
        result("clean"),
        replace(result("fgsm"), non_finite=3),
        replace(result("aa"), non_finite=1, images=5),
    ]
    file = StringIO()
    show_results({student: row}, report_in("text", Console(file=file, width=200)))
    ((cells,),) = sections(file.getvalue())
    assert cells[1:] == ["12.50", "12.50, 3 non-finite", "20.00 [3.6, 62.4], 1 non-finite"]
    assert "non-finite: images whose logits are NaN or infinite" in file.getvalue()
    assert "non-finite" not in shown(student)


def test_doubtful_accuracies_are_marked_and_say_why():
    student = target("mine", "best", None)
    rounding = replace(result("fgsm"), warnings=("it rounds",))
    file = StringIO()
    row = [result("clean"), rounding, replace(rounding, attack="aa", non_finite=1)]
    show_results({student: row}, report_in("text", Console(file=file, width=200)))
    ((cells,),) = sections(file.getvalue())
    assert cells[1:] == ["12.50", "12.50 (!)", "12.50, 1 non-finite (!)"]
    assert file.getvalue().count("(!) mine best: it rounds") == 1
    assert "(!)" not in shown(student)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"pixels": ""}, "data (not known to be the official pixels)"),
        ({"pixels": "not the official pixels: JPEG files"}, "data (not the official pixels: JPEG files)"),
        ({"dataset": "photos"}, "data (photos for cifar10)"),
    ],
)
def test_other_data_are_named_before_other_settings(facts, named):
    config = load_recipe("cifar10-resnet18-trades")
    other = replace(config, optim=OptimConfig(lr=0.2, milestones=config.optim.milestones))
    assert f"): other {named}, optim.lr" in shown(target("other", "best", other), **facts)


def test_other_data_alone_are_named():
    text = shown(target("same", "best", load_recipe("cifar10-resnet18-trades")), pixels="")
    assert "other data (not known to be the official pixels)" in text


STUDENTS = (
    target("cifar10-wideresnet34x10-trades", "best-swa", load_recipe("cifar10-wideresnet34x10-trades")),
    target("mine", "best", load_recipe("cifar10-resnet18-trades")),
)


def on_terminal(width: int, *attacks: str, images: int = 8) -> str:
    """What a terminal shows of two students and the paper's rows."""
    file = StringIO()
    row = [replace(result(attack), images=images) for attack in attacks]
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    show_results(dict.fromkeys(STUDENTS, row), report_in("text", console))
    return file.getvalue()


@pytest.mark.parametrize("images", [8, 4])
@pytest.mark.parametrize("attacks", [ATTACKS[:1], ATTACKS[:4], ATTACKS])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_nothing_is_cut_on_a_narrow_terminal(width, attacks, images):
    text = on_terminal(width, *attacks, images=images)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    # Of a table's line the first cell: a name may go on in the next line.
    firsts = [line.split("│")[1] if "│" in line else line for line in text.splitlines()]
    plain = "".join(firsts).replace(" ", "")
    for name in (*(student.label for student in STUDENTS), "paper, Table 1, CIFAR-10, ResNet-18, TRADES"):
        assert name.replace(" ", "") in plain
    figure = "12.50" if images == 8 else "25.00 [4.6, 69.9]"
    assert text.count(figure) == 2 * len(attacks)
    papers = {"clean": "81.47", "fgsm": "57.75", "pgd20": "52.92", "aa": "49.35"}
    assert all(papers.get(attack, "") in text for attack in attacks)
    for heading, attack in zip(("clean", "FGSM", "PGD-20", "PGD-10", "AutoAttack"), ATTACKS, strict=True):
        assert (heading in text) >= (attack in attacks)


def test_where_a_row_does_not_fit_each_figure_has_its_own():
    lines = [line.rstrip() for line in on_terminal(40, "clean", "aa").splitlines()]
    start = lines.index("mine best")
    assert lines[start + 1 : start + 3] == ["  clean       12.50", "  AutoAttack  12.50"]


def test_a_pipe_has_no_width():
    text = shown(*STUDENTS, width=40)
    assert text == shown(*STUDENTS, width=200)
    assert [
        "paper, Table 1, CIFAR-10, ResNet-18, TRADES",
        "81.47",
        "57.75",
        "52.92",
        "",
        "49.35",
    ] in sections(text)[1]
    assert "all runs: best epochs were chosen on test images (selection.split = test)\n" in text


def test_other_test_images_have_a_table_of_their_own():
    file = StringIO()
    one, two = target("one", "last", None), target("two", "last", None)
    rows = {one: [result("clean")], two: [replace(result("clean", "digits"), total=20)]}
    show_results(rows, report_in("text", Console(file=file)))
    first, second = file.getvalue().split("accuracy in % on ")[1:]
    assert first.startswith("all 8 test images of cifar10")
    assert second.startswith("8 of 20 test images of digits")
    assert "one last" in first
    assert "two last" not in first


def test_stored_figures_of_other_images_than_the_title_s_are_named():
    file, mine = StringIO(), target("mine", "last", None)
    row = [replace(result("clean"), images=4), replace(result("fgsm"), images=4), result("pgd20")]
    show_results({mine: row}, report_in("text", Console(file=file, width=200)))
    assert "on 4 of 8 test images of cifar10" in file.getvalue()
    assert file.getvalue().count(" is on ") == 1
    assert "mine last: PGD-20 is on all 8 test images of cifar10\n" in file.getvalue()


def test_an_evaluation_that_was_stopped_shows_what_it_found():
    file = StringIO()
    one, two = target("one", "last", None), target("two", "last", None)
    rows = {one: [result("clean"), result("aa")], two: [result("clean")], target("three", "last", None): []}
    show_results(rows, report_in("text", Console(file=file)))
    assert sections(file.getvalue()) == [[["one last", "12.50", "12.50"]], [["two last", "12.50", ""]]]


def test_what_autoattack_s_verdict_depends_on_and_what_few_classes_have_is_said():
    few = replace(result("aa-few-classes"), targets=2)
    for one, said in (
        (result("aa"), ["random numbers are those of batches of 8: another --batch-size may"]),
        (few, ["AA, few classes", "apgd-ce, apgd-dlr, fab-t, square; not AutoAttack standard"]),
    ):
        file = StringIO()
        show_results({target("a", "last", None): [one]}, report_in("text", Console(file=file, width=200)))
        assert all(words in file.getvalue() for words in said), file.getvalue()
