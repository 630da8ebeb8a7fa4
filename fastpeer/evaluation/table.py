"""The table of an evaluation's results, with the paper's figures for comparison."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fastpeer.config import Config, PaperConfig, format_fraction
from fastpeer.config.differences import other_data, other_settings
from fastpeer.evaluation.attack_names import autoattacks_of, heading, uses_autoattack
from fastpeer.evaluation.autoattack_parts.standard import FEW_CLASSES, TARGETS
from fastpeer.evaluation.results import WARNED, Result, cell
from fastpeer.evaluation.seeds import Spread, seed_groups, spreads
from fastpeer.evaluation.targets import Target
from fastpeer.printing import FigureTable, Row
from fastpeer.table_formats import Report

NORMS = {"linf": "L-infinity", "l2": "L2"}
PAPER_FIGURES = ("clean", "fgsm", "pgd20", "aa")


def show_results(results: Mapping[Target, Sequence[Result]], report: Report) -> None:
    """Show a row for each student, the paper's figures below each run's rows, and notes below the table.

    Students that were attacked with other images (another data set) have a table of their own.

    Args:
        results: results of each target, in the same order of attacks; a stopped evaluation's may end early.
        report: what takes the tables and notes.
    """
    found = {target: row for target, row in results.items() if row}
    for words in dict.fromkeys(title(row[0]) for row in found.values()):
        alike = {target: row for target, row in found.items() if title(row[0]) == words}
        report.tables(words, [_table(alike)])
    for note in notes(found):
        report.note(note)


def _table(results: Mapping[Target, Sequence[Result]]) -> FigureTable:
    attacks = [result.attack for result in max(results.values(), key=len)]
    sections = [_section(rows, attacks) for rows in _by_run(results)]
    sections += [[_seeds_row(group, results, attacks)] for group in seed_groups(list(results))]
    norm = next(iter(results.values()))[0].norm
    return FigureTable(("student", *(heading(attack, norm) for attack in attacks)), sections)


def _section(rows: Mapping[Target, Sequence[Result]], attacks: Sequence[str]) -> list[Row]:
    """Return a run's rows and the paper's."""
    section = [Row(target.label, _cells(row, attacks)) for target, row in rows.items()]
    paper = comparable_paper(*next(iter(rows.items())))
    if paper is not None:
        figures = [_paper_cell(paper, attack) for attack in attacks]
        section.append(Row(f"paper, {paper.row}", figures, "italic"))
    return section


def _seeds_row(
    group: Sequence[Target], results: Mapping[Target, Sequence[Result]], attacks: Sequence[str]
) -> Row:
    found = {attack: _spread_cell(spread) for attack, spread in spreads(group, results)}
    name = f"mean of {len(group)} seeds, {group[0].checkpoint}"
    return Row(name, [found.get(attack, "") for attack in attacks], "bold")


def _spread_cell(spread: Spread) -> str:
    text = f"{spread.mean:.2f} ± {spread.deviation:.2f}"
    return f"{text} {WARNED}" if spread.doubtful else text


def _by_run(results: Mapping[Target, Sequence[Result]]) -> Iterable[dict[Target, Sequence[Result]]]:
    """Group the students by run, in order of appearance; weights that belong to no run are a group each."""
    runs: dict[object, dict[Target, Sequence[Result]]] = {}
    for target, row in results.items():
        runs.setdefault(target.run.path.absolute() if target.run else target, {})[target] = row
    return runs.values()


def title(result: Result) -> str:
    """Return what stands above a table of results like this one: images, data set and ball."""
    radius = format_fraction(result.epsilon)
    ball = f"{NORMS.get(result.norm, result.norm)} epsilon {radius}"
    usual = (result.norm, result.step_size) == ("linf", 2 / 255)
    steps = "" if usual else f", steps of {format_fraction(result.step_size)}"
    return f"accuracy in % on {images_text(result.images, result.total, result.dataset)}, {ball}, fp32{steps}"


def images_text(images: int, total: int, dataset: str) -> str:
    """Tell which images were classified, such as 500 of 10,000 test images of cifar10."""
    count = f"all {total:,}" if images == total else f"{images:,} of {total:,}"
    # What `fastpeer prep --dataset folder` calls the data set of one's own images.
    return f"{count} test images of {'a folder' if dataset == 'folder' else dataset}"


def comparable_paper(target: Target, row: Sequence[Result]) -> PaperConfig | None:
    """Return the paper's row for a run's recipe, if data set and attack are the paper's too."""
    paper = target.config.paper if target.config else None
    comparable = paper is not None and paper.dataset == row[0].dataset and _is_papers_attack(row[0])
    return paper if comparable else None


def _is_papers_attack(result: Result) -> bool:
    return (result.norm, result.epsilon, result.step_size) == ("linf", 8 / 255, 2 / 255)


def notes(results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    """Yield what stands below a table: how runs depart from their papers, and what marks mean."""
    configs = {target.run.path: target.config for target in results if target.run and target.config}
    rows = {target.run.path: row for target, row in results.items() if target.run}
    paths_of: dict[str, list[str]] = {}
    for path, config in configs.items():
        for note in _notes_on_run(config, rows[path][0]):
            paths_of.setdefault(note, []).append(str(path))
    for note, paths in paths_of.items():
        yield f"{'all runs' if len(paths) == len(configs) > 1 else ', '.join(paths)}: {note}"
    yield from _other_images(results)
    yield from warning_notes(results)
    for names in dict.fromkeys(map(_run_names, seed_groups(list(results)))):
        yield f"{names}: differ in their seed alone; ± is the standard deviation over them (n − 1)"
    yield from _notes_on_figures([result for row in results.values() for result in row])


def _other_images(results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    """Yield which figures are of other images than the title says, as those of several evaluations may be."""
    for target, row in results.items():
        for result in row:
            if result.images != row[0].images:
                images = images_text(result.images, result.total, result.dataset)
                yield f"{target.label}: {heading(result.attack, result.norm)} is on {images}"


def warning_notes(results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    """Yield why accuracies that are marked may be too high."""
    for target, row in results.items():
        for warning in dict.fromkeys(warning for result in row for warning in result.warnings):
            yield f"{WARNED} {target.label}: {warning}"


def _run_names(targets: Sequence[Target]) -> str:
    return ", ".join(str(target.run.path) for target in targets if target.run)


def _notes_on_run(config: Config, result: Result) -> Iterator[str]:
    """Yield how a run departs from its paper, given one of its results, and how its epochs were chosen."""
    paper, others = config.paper, other_settings(config)
    if paper is not None and (others or paper.dataset == result.dataset):
        others = [*other_data(result.dataset, result.pixels, paper), *others]
    if paper is not None and others:
        yield f"not the paper's settings ({paper.row}): other {', '.join(others)}"
    if config.attack.norm == "l2" and result.norm != "l2":
        ball = " ".join(config.attack.ball_flags)
        yield f"trained with attack.norm = l2, attacked here in L-infinity ({ball})"
    split = "test images" if config.selection.split == "test" else "held-out training images"
    yield f"best epochs were chosen on {split} (selection.split = {config.selection.split})"


def _notes_on_figures(results: Sequence[Result]) -> Iterator[str]:
    for count in {result.targets for result in results if result.targets is not None}:
        if count < TARGETS:
            yield f"AutoAttack aimed at {count} wrong classes, not at {TARGETS}: there are no more"
    few = {result.targets for result in results if result.attack == FEW_CLASSES and result.targets}
    for count in few:
        attacks = ", ".join(autoattacks_of(FEW_CLASSES, count + 1))
        yield f"AA, few classes: {attacks}; not AutoAttack standard, which needs four classes"
    sizes = sorted({result.batch_size for result in results if uses_autoattack(result.attack)})
    if sizes:
        numbers = ", ".join(map(str, sizes))
        yield (
            "AutoAttack's random numbers are those of batches of"
            f" {numbers}: another --batch-size may find a few images more or fewer"
        )
    if any(result.confidence_interval for result in results):
        yield "in brackets: 95 % interval for the accuracy on all test images"
    if any(result.non_finite for result in results):
        yield (
            "non-finite: images whose logits are NaN or infinite, or whose gradient under attack is NaN; they"
            " count as classified wrongly"
        )


def _cells(row: Sequence[Result], attacks: Sequence[str]) -> list[str]:
    found = {result.attack: cell(result) for result in row}
    return [found.get(attack, "") for attack in attacks]


def _paper_cell(paper: PaperConfig, attack: str) -> str:
    return f"{getattr(paper, attack):.2f}" if attack in PAPER_FIGURES else ""
