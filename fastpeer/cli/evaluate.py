"""`fastpeer eval`: attack finished networks, and hold the accuracies against the paper's."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastpeer.cli.arguments import EvalArguments, parse
from fastpeer.cli.log_lines import log_to
from fastpeer.run_folder import newest_run

if TYPE_CHECKING:
    from fastpeer.evaluation.protocol import Protocol, Watch
    from fastpeer.evaluation.results import Result
    from fastpeer.evaluation.targets import Target

LOGGERS = ("fastpeer.models.weights", "fastpeer.evaluation.protocol")
"""Log what was taken from the files: which weights, and which normalisation."""


def eval_command(words: Sequence[str]) -> None:
    """Evaluate what the words behind `fastpeer eval` name, print a table and store the results.

    Raises:
        UserError: whatever the user can fix.
    """
    arguments = parse(EvalArguments, words, "fastpeer eval")
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    from fastpeer.evaluation.results import read_results
    from fastpeer.evaluation.table import print_results
    from fastpeer.evaluation.targets import find_targets

    protocol = _protocol(arguments)
    paths = arguments.runs or (newest_run().path,)
    targets = find_targets(paths, arguments.checkpoints)
    for target in targets:
        # Before hours of attacks, not after them: a file that cannot be added to is an error.
        read_results(target.results_file)
    console = Console(quiet=arguments.quiet)
    results: dict[Target, list[Result]] = {}
    # Of a network that cannot be folded, nothing: the accuracies are the same.
    with log_to(console, logging.WARNING, more=LOGGERS):
        for target in targets:
            results[target] = list(_results(target, results, protocol, arguments, console))
    print_results(results, Console())


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
    )


def _results(
    target: "Target",
    known: "dict[Target, list[Result]]",
    protocol: "Protocol",
    arguments: EvalArguments,
    console: Console,
) -> "Iterator[Result]":
    from fastpeer.evaluation.results import store_results

    for result in _same_weights(target, known) or protocol.run(
        target, arguments.data, arguments.model, _watch(console)
    ):
        store_results(target.results_file, [result])
        yield result


def _same_weights(target: "Target", known: "dict[Target, list[Result]]") -> "list[Result]":
    """Return known results: the last epoch is often the best one too, and need not be attacked twice."""
    for other, results in known.items():
        if other.run == target.run and other.sha256 == target.sha256:
            return [replace(result, target=target.label) for result in results]
    return []


def _watch(console: Console) -> "Watch":
    """Return what shows a bar for each attack; bars are for a terminal: a file gets the table alone."""

    @contextmanager
    def watch(what: str, images: int) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task(what, total=images)

            def show(done: int) -> None:
                bars.update(task, completed=done)

            yield show

    return watch
