"""`fastpeer eval`: attack finished networks, and hold the accuracies against the paper's."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from rich.console import Console

from fastpeer.cli.arguments import EvalArguments, parse
from fastpeer.cli.log_lines import log_to
from fastpeer.cli.other_measures import measure_targets, other_measure
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.cli.watching import watch_on
from fastpeer.errors import UserError
from fastpeer.run_folder import newest_run, newest_run_of

if TYPE_CHECKING:
    from fastpeer.evaluation.protocol import Protocol
    from fastpeer.evaluation.results import Result
    from fastpeer.evaluation.targets import Target
    from fastpeer.table_formats import Report

log = logging.getLogger(__name__)

LOGGERS = ("fastpeer.models.weights",)
"""Log what was taken from the files: which weights, and which normalisation."""


def eval_command(words: Sequence[str]) -> None:
    """Evaluate what the words behind `fastpeer eval` name, print a table and store the results.

    Raises:
        UserError: whatever the user can fix.
    """
    arguments = parse(EvalArguments, words, "fastpeer eval")
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    import_pytorch()
    from fastpeer.evaluation.results import check_storable
    from fastpeer.evaluation.targets import find_targets
    from fastpeer.evaluation.tutors import beside_their_peers
    from fastpeer.training.signals import interruptible

    protocol = _protocol(arguments)
    # Of another format than text, standard output holds nothing else.
    console = Console(quiet=arguments.quiet, stderr=arguments.format != "text")
    # Of a network that cannot be folded, nothing: the accuracies are the same.
    with log_to(console, logging.WARNING, more=LOGGERS), interruptible():
        for doubt in protocol.doubts():
            log.warning(doubt)
        runs = arguments.runs or (newest_run().path,)
        targets = find_targets(runs, arguments.checkpoints, arguments.force_settings)
        if arguments.table == 2 and "best-swa" not in arguments.checkpoints:
            targets = beside_their_peers(targets)
        protocol = replace(protocol, surrogates=_surrogates(arguments, targets))
        for target in targets if not arguments.stored else ():
            # Before hours of attacks, not after them.
            check_storable(target.results_file)
            if not arguments.model:
                target.refuse_untrusted()
        measure = other_measure(arguments)
        if measure is None:
            _evaluate(targets, protocol, arguments, console)
        else:
            measure_targets(measure, targets, protocol, arguments, console)


def _evaluate(
    targets: "Sequence[Target]", protocol: "Protocol", arguments: EvalArguments, console: Console
) -> None:
    """Attack the targets in turn; however that ends, print what was found."""
    from fastpeer.evaluation.results import ResultsWriter

    writer = ResultsWriter()
    results: dict[Target, list[Result]] = {}
    try:
        for target in targets:
            row: list[Result] = []
            attacks = _results(target, dict(results), protocol, arguments, console)
            results[target] = row
            for result in attacks:
                row.append(result)
                if not arguments.stored:
                    writer.add(target.results_file, result)
    finally:
        found = {target: row for target, row in results.items() if row}
        if found:
            _print(found, arguments)
    writer.check()


def _check_together(arguments: EvalArguments) -> None:
    """Refuse flags that do not go together."""
    given = {
        "--corruptions": arguments.corruptions is not None, "--certify": arguments.certify > 0,
        "--attacks": arguments.attacks != EvalArguments.attacks, "--table": arguments.table,
        "--surrogates": arguments.surrogates, "--curve": arguments.curve, "--per-class": arguments.per_class,
        "--stored": arguments.stored,
    }  # fmt: skip
    apart = [
        # What is measured in place of attacks goes with no flag of theirs.
        *(pair for pair in combinations(given, 2) if pair[0] in ("--corruptions", "--certify")),
        *((flag, how) for how in ("--table", "--surrogates") for flag in ("--stored", "--curve")),
    ]
    for one, other in apart:
        if given[one] and given[other]:
            raise UserError(f"{one} and {other} do not go together: leave one out")


def _attacks(arguments: EvalArguments) -> list[str]:
    """Return the names of the attacks that are asked for, or that a table of the paper needs."""
    from fastpeer.evaluation.attack_names import parse_attacks, uses_autoattack
    from fastpeer.evaluation.paper_tables import paper_table

    _check_together(arguments)
    if other_measure(arguments) is not None:
        return ["clean"]
    if arguments.table:
        if arguments.attacks != EvalArguments.attacks:
            raise UserError(f"--table {arguments.table} has its own attacks: leave --attacks out")
        if arguments.surrogates and arguments.table != 6:
            raise UserError("--surrogates are for --attacks and --table 6")
        return list(paper_table(arguments.table).attacks)
    names = parse_attacks(arguments.attacks)
    alone = [name for name in names if arguments.surrogates and uses_autoattack(name)]
    if alone:
        raise UserError(f"{alone[0]} attacks its own network only: leave it out, or leave --surrogates out")
    return names


def _surrogates(arguments: EvalArguments, targets: "Sequence[Target]") -> "tuple[Target, ...]":
    """Return the networks that images are made against: named, or those of Table 6; none: each its own."""
    from fastpeer.evaluation.paper_tables import surrogate_recipes
    from fastpeer.evaluation.targets import find_targets

    paths = list(arguments.surrogates)
    if arguments.table == 6 and not paths:
        config = targets[0].config
        recipes = surrogate_recipes(config) if config else []
        runs = {recipe: newest_run_of(recipe) for recipe in recipes}
        missing = [recipe for recipe, run in runs.items() if run is None]
        if missing or not recipes:
            advice = f"fastpeer train {missing[0]}, or" if missing else "train some by --method pgd-at, and"
            raise UserError(f"--table 6 needs its surrogates: {advice} name runs with --surrogates")
        paths = [run.path for run in runs.values() if run is not None]
    return tuple(find_targets(paths, "best", arguments.force_settings)) if paths else ()


def _print(results: "dict[Target, list[Result]]", arguments: EvalArguments) -> None:
    from fastpeer.evaluation.comparison import comparisons
    from fastpeer.evaluation.details import show_by_class
    from fastpeer.table_formats import report_in

    report = report_in(arguments.format, Console())
    _main_table(arguments)(results, report)
    if arguments.per_class:
        show_by_class(results, report)
    for line in comparisons(results):
        report.note(line)
    report.end()


def _main_table(
    arguments: EvalArguments,
) -> "Callable[[Mapping[Target, Sequence[Result]], Report], None]":
    from fastpeer.evaluation.details import show_curves
    from fastpeer.evaluation.paper_tables import paper_table, show_transfers
    from fastpeer.evaluation.table import show_results

    if arguments.table:
        return paper_table(arguments.table).show
    if arguments.surrogates:
        return show_transfers
    return show_curves if arguments.curve else show_results


def _protocol(arguments: EvalArguments) -> "Protocol":
    from fastpeer.device import choose_device
    from fastpeer.evaluation.protocol import Protocol

    return Protocol(
        attacks=_attacks(arguments),
        examples=arguments.examples,
        epsilon=arguments.epsilon,
        step_size=arguments.step_size,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        device=choose_device(arguments.device),
        size=arguments.size,
        weights_key=arguments.weights_key,
        mean=arguments.mean,
        std=arguments.std,
        norm=arguments.norm,
        curve=arguments.radii,
        autoattack=arguments.autoattack,
    )


def _results(
    target: "Target",
    known: "dict[Target, list[Result]]",
    protocol: "Protocol",
    arguments: EvalArguments,
    console: Console,
) -> "Iterator[Result]":
    """Yield a target's results as they are found, or as they were stored."""
    if arguments.stored:
        yield from protocol.stored(target)
        return
    run = protocol.run_tutors if arguments.table == 2 else protocol.run
    known_results = _same_weights(target, known)
    yield from known_results or run(target, arguments.data, arguments.model, watch_on(console))


def _same_weights(target: "Target", known: "dict[Target, list[Result]]") -> "list[Result]":
    """Return known results: the last epoch is often the best one too, and need not be attacked twice."""
    for other, results in known.items():
        if results and other.run == target.run and results[0].weights_sha256 == target.sha256:
            return [replace(result, target=target.label) for result in results]
    return []
