"""The table that an evaluation prints."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from fastpeer.config import PaperConfig, format_fraction
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.target import Target

HEADINGS = {"clean": "clean", "fgsm": "FGSM", "aa": "AutoAttack"}


def results_table(results: Mapping[Target, Sequence[Result]]) -> Table:
    """Return one row for each student, and below them the paper's figures for the same recipes.

    Args:
        results: of each target, in the order of the columns.
    """
    some = next(iter(results.values()))
    table = Table(title=_title(some[0]), caption="\n".join(_notes(results)), caption_justify="left")
    table.add_column("student", no_wrap=True)
    for result in some:
        table.add_column(_heading(result.attack), justify="right")
    shown: list[PaperConfig] = []
    for target, row in results.items():
        table.add_row(target.label, *map(_cell, row))
    for target in results:
        paper = target.config.paper if target.config else None
        if paper is not None and paper.dataset == results[target][0].dataset and paper not in shown:
            shown.append(paper)
            table.add_section()
            table.add_row(f"paper, {paper.row}", *(_paper_cell(paper, result.attack) for result in some))
    return table


def _title(result: Result) -> str:
    images = f"all {result.total}" if result.images == result.total else f"{result.images} of {result.total}"
    return f"accuracy in % on {images} test images, epsilon {format_fraction(result.epsilon)}"


def _notes(results: Mapping[Target, Sequence[Result]]) -> list[str]:
    notes = []
    configs = {target.run.path: target.config for target in results if target.run and target.config}
    for path, config in configs.items():
        split = "test images" if config.selection.split == "test" else "held-out training images"
        notes.append(
            f"{path.name}: best epochs were selected on {split} (selection.split = {config.selection.split})"
        )
    targets = {result.targets for row in results.values() for result in row if result.targets is not None}
    notes += [
        f"AutoAttack aimed at {count} wrong classes instead of 9: there are no more"
        for count in targets
        if count < 9
    ]
    if any(result.interval for row in results.values() for result in row):
        notes.append("in brackets: 95 % interval for all test images")
    return notes


def _heading(attack: str) -> str:
    return HEADINGS.get(attack) or attack.upper().replace("PGD", "PGD-")


def _cell(result: Result) -> str:
    if result.interval is None:
        return f"{result.accuracy:.2f}"
    low, high = result.interval
    return f"{result.accuracy:.2f} [{low:.1f}, {high:.1f}]".replace("[", "\\[")


def _paper_cell(paper: PaperConfig, attack: str) -> str:
    return f"{getattr(paper, attack):.2f}" if attack in ("clean", "fgsm", "pgd20", "aa") else ""
