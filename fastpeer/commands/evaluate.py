"""`fastpeer eval`: attack finished networks, and hold the accuracies against the paper's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastpeer.arguments import EvalArguments, parse
from fastpeer.runfolder import newest_run

if TYPE_CHECKING:
    from fastpeer.evaluation.protocol import Protocol
    from fastpeer.evaluation.results import Result
    from fastpeer.evaluation.target import Target


def eval_command(words: Sequence[str]) -> None:
    """Evaluate what the words behind `fastpeer eval` name, print a table and store the results.

    Raises:
        UserError: whatever the user can mend.
    """
    arguments = parse(EvalArguments, words, "fastpeer eval")
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    from fastpeer.evaluation.table import results_table
    from fastpeer.evaluation.target import find_targets

    protocol = _protocol(arguments)
    paths = arguments.runs or (newest_run().path,)
    targets = [target for path in paths for target in find_targets(path, arguments.checkpoints)]
    console = Console(quiet=arguments.quiet)
    results: dict[Target, list[Result]] = {}
    for target in targets:
        results[target] = _results(target, results, protocol, arguments, console)
        _store(target, results[target])
    Console().print(results_table(results))


def _protocol(arguments: EvalArguments) -> "Protocol":
    from fastpeer.engine.precision import choose_device
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
    )


def _results(
    target: "Target",
    known: "dict[Target, list[Result]]",
    protocol: "Protocol",
    arguments: EvalArguments,
    console: Console,
) -> "list[Result]":
    for other, results in known.items():
        # The last epoch is often the best one too: the same weights need not be attacked twice.
        if other.run == target.run and other.sha256 == target.sha256:
            return [replace(result, target=target.label) for result in results]

    @contextmanager
    def watch(what: str, images: int) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Bars are for a terminal: a file gets the table alone.
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task(what, total=images)

            def show(done: int) -> None:
                bars.update(task, completed=done)

            yield show

    return protocol.run(target, arguments.folder, arguments.model, watch)


def _store(target: "Target", results: "list[Result]") -> None:
    from fastpeer.evaluation.results import store_results

    file = target.run.results_file if target.run else Path(f"{target.weights}.results.json")
    store_results(file, results)
