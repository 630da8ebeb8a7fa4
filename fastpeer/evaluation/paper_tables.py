"""Tables 2, 6 and 7 of PeerAiD's paper: what is attacked for each, and how it is shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastpeer.config import Config
from fastpeer.config.shipped import shipped_recipes
from fastpeer.errors import UserError
from fastpeer.evaluation import obfuscation
from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.results import Result, cell
from fastpeer.evaluation.table import comparable_paper, notes, title
from fastpeer.evaluation.targets import Target
from fastpeer.evaluation.tutors import COSINES
from fastpeer.printing import FigureTable, Row
from fastpeer.table_formats import Report

Results = Mapping[Target, Sequence[Result]]
SURROGATES = ("resnet34", "mobilenetv2")
"""Networks whose examples Table 6 transfers, trained by the recipes DATA-NETWORK-pgd-at-surrogate."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper that holds other things than accuracies under clean, fgsm, pgd20 and aa.

    Attributes:
        attacks: names that it needs.
        show: hands what was found to a report.
    """

    attacks: tuple[str, ...]
    show: Callable[[Results, Report], None]


def paper_table(number: int) -> PaperTable:
    """Return a table by its number in the paper.

    Raises:
        UserError: it is none of these.
    """
    tables = {
        2: PaperTable(("pgd20",), _show_tutors),
        6: PaperTable(("fgsm", "pgd20"), show_transfers),
        7: PaperTable(obfuscation.ATTACKS, _show_obfuscation),
    }
    if number not in tables:
        others = "1, 3, 4 and 5 are --attacks clean,fgsm,pgd20,aa"
        raise UserError(f"--table must be 2, 6 or 7 ({others}), got {number}")
    return tables[number]


def surrogate_recipes(config: Config) -> list[str]:
    """Return the recipes of Table 6's surrogates for a run's data set, if there are any."""
    shipped = shipped_recipes().names
    names = (f"{config.data.dataset}-{network}-pgd-at-surrogate" for network in SURROGATES)
    return [name for name in names if name in shipped]


def show_transfers(results: Results, report: Report) -> None:
    """Show how students withstand the examples of other networks, Table 6 beside, and notes below."""
    longest = max(results.values(), key=len)
    columns = [(result.attack, result.source) for result in longest]
    headings = [
        heading(name, longest[0].norm) + (f" from {source}" if source else "") for name, source in columns
    ]
    sections = []
    for target, row in results.items():
        cells = {(result.attack, result.source): cell(result) for result in row}
        section = [Row(target.label, [cells.get(column, "") for column in columns])]
        sections.append([*section, *_papers_transfers(target, row, columns)])
    _show(results, FigureTable(("student", *headings), sections), report)


def _papers_transfers(
    target: Target, row: Sequence[Result], columns: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """Yield the paper's row of Table 6, if there is one and these are its attacks and surrogates."""
    networks = {source: network for _, source in columns for network in SURROGATES if network in source}
    order = [(attack, network) for network in SURROGATES for attack in ("fgsm", "pgd20")]
    found = dict(zip(order, _paper_figures("Table 6, CIFAR-100, ResNet-18", target, row), strict=False))
    cells = [found.get((attack, networks.get(source, ""))) for attack, source in columns]
    if any(figure is not None for figure in cells):
        yield Row("paper, Table 6", ["" if figure is None else f"{figure:.2f}" for figure in cells], "italic")


def _show_obfuscation(results: Results, report: Report) -> None:
    """Show accuracies, Table 7 beside, and for each student what four checks of them say."""
    names = list(obfuscation.ATTACKS)
    norm = next(iter(results.values()))[0].norm
    sections = []
    for target, row in results.items():
        cells = {result.attack: cell(result) for result in row}
        papers = dict(
            zip(("pgd10", "pgd1000", "unbounded100"), _paper_figures("Table 7", target, row), strict=False)
        )
        section = [Row(target.label, [cells.get(name, "") for name in names])]
        if papers:
            texts = [f"{papers[name]:.2f}" if name in papers else "" for name in names]
            section.append(Row("paper, Table 7", texts, "italic"))
        sections.append(section)
    headings = [heading(name, norm) for name in names]
    _show(results, FigureTable(("student", *headings), sections), report)
    for target, row in results.items():
        for line in obfuscation.verdict(row):
            report.note(f"{target.label}: {line}")


def _show_tutors(results: Results, report: Report) -> None:
    """Show each student's tutors under both attacks, Table 2 beside, and what the columns mean."""
    attack = heading(next(iter(results.values()))[-1].attack)
    headings = (
        "tutor f of a student S", "f, clean", f"f, own {attack}", f"f, {attack} of S", f"S, own {attack}",
        *(f"cos: {pair}" for pair in COSINES),
    )  # fmt: skip
    sections = [list(_tutor_rows(target, row)) for target, row in results.items()]
    _show(results, FigureTable(headings, sections), report)
    report.note(
        "cos: mean cosine similarity of what f's last linear layer reads, of clean images, of examples"
        " against S (student's) or against f (own)",
    )


def _tutor_rows(target: Target, row: Sequence[Result]) -> Iterator[Row]:
    """Yield each tutor's figures, four results together, and the paper's."""
    for first in range(0, len(row) - 3, 4):
        part = row[first : first + 4]
        cosines = part[2].cosines
        yield Row(part[0].target, [*map(cell, part), *(f"{cosines[pair]:.2f}" for pair in COSINES)])
        figures = _paper_figures("Table 2, CIFAR-100, ResNet-18", target, row, part[0].role)
        if figures:
            yield Row(f"paper, Table 2, {part[0].role}", [f"{figure:.2f}" for figure in figures], "italic")


def _paper_figures(table: str, target: Target, row: Sequence[Result], name: str = "") -> Sequence[float]:
    """Return the paper's figures for a run's recipe in a table; empty, if they are not comparable."""
    paper = comparable_paper(target, row)
    if paper is None or (name and "CIFAR-100, ResNet-18" not in paper.row):
        return ()
    return shipped_recipes().tables[table].get(name or paper.row, ())


def _show(results: Results, table: FigureTable, report: Report) -> None:
    report.tables(title(next(iter(results.values()))[0]), [table])
    for note in notes(results):
        report.note(note)
