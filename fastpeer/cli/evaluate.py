"""`fastpeer eval`: attack finished networks, and hold the accuracies against the paper's."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from fastpeer.cli.arguments import EvalArguments, parse
from fastpeer.cli.log_lines import log_to
from fastpeer.cli.watching import watch_on
from fastpeer.run_folder import newest_run

if TYPE_CHECKING:
    from fastpeer.evaluation.protocol import Protocol
    from fastpeer.evaluation.results import Result
    from fastpeer.evaluation.targets import Target

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
    from fastpeer.evaluation.results import check_storable
    from fastpeer.evaluation.targets import find_targets
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
        for target in targets:
            # Before hours of attacks, not after them.
            check_storable(target.results_file)
        _evaluate(targets, protocol, arguments, console)


def _evaluate(
    targets: "Sequence[Target]", protocol: "Protocol", arguments: EvalArguments, console: Console
) -> None:
    """Attack the targets in turn; however that ends, print what was found."""
    from fastpeer.evaluation.results import ResultsWriter
    from fastpeer.evaluation.table import print_results

    writer = ResultsWriter()
    results: dict[Target, list[Result]] = {}
    try:
        for target in targets:
            row: list[Result] = []
            attacks = _results(target, dict(results), protocol, arguments, console)
            results[target] = row
            for result in attacks:
                row.append(result)
                writer.add(target.results_file, result)
    finally:
        if any(results.values()):
            print_results(results, Console(), arguments.format)
    writer.check()


def _protocol(arguments: EvalArguments) -> "Protocol":
    from fastpeer.device import choose_device
    from fastpeer.evaluation.attacks import parse_attacks
    from fastpeer.evaluation.protocol import Protocol

    return Protocol(
        attacks=parse_attacks(arguments.attacks),
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
    )


def _results(
    target: "Target",
    known: "dict[Target, list[Result]]",
    protocol: "Protocol",
    arguments: EvalArguments,
    console: Console,
) -> "Iterator[Result]":
    """Yield a target's results as they are found."""
    known_results = _same_weights(target, known)
    yield from known_results or protocol.run(target, arguments.data, arguments.model, watch_on(console))


def _same_weights(target: "Target", known: "dict[Target, list[Result]]") -> "list[Result]":
    """Return known results: the last epoch is often the best one too, and need not be attacked twice."""
    for other, results in known.items():
        if results and other.run == target.run and results[0].weights_sha256 == target.sha256:
            return [replace(result, target=target.label) for result in results]
    return []
