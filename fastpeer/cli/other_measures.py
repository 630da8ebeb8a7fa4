"""What `fastpeer eval` measures in place of attacks: accuracy on corrupted images, certified radii."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastpeer.cli.arguments import EvalArguments
from fastpeer.cli.watching import watch_on
from fastpeer.errors import UserError
from fastpeer.table_formats import Report, report_in

if TYPE_CHECKING:
    from fastpeer.evaluation.protocol import Protocol, Watch
    from fastpeer.evaluation.smoothing import Smoothing
    from fastpeer.evaluation.targets import Target


@dataclass(frozen=True)
class Measure:
    """One of these measures.

    Attributes:
        find: returns the result of a target, which has `entry()`.
        section, key: where and under which names the entry is stored, see `store_entry`.
        report: writes the results of all targets.
    """

    find: "Callable[[Protocol, Target, Watch], Any]"
    section: str
    key: Sequence[str]
    report: Callable[[Sequence[Any], Report], None]


def other_measure(arguments: EvalArguments) -> Measure | None:
    """Return the measure that is asked for in place of attacks, if one is.

    Raises:
        UserError: too few noisy images for a certificate.
    """
    if arguments.corruptions is not None:
        return _corruptions(arguments)
    return _certificate(arguments) if arguments.certify else None


def measure_targets(
    measure: Measure, targets: "Sequence[Target]", protocol: "Protocol", arguments: EvalArguments,
    console: Console,
) -> None:  # fmt: skip
    """Measure and store the targets in turn; however that ends, print what was found.

    Raises:
        UserError: also where a result cannot be stored.
    """
    from fastpeer.evaluation.results import store_entry

    found: list[Any] = []
    try:
        for target in targets:
            found.append(measure.find(protocol, target, watch_on(console)))
            store_entry(target.results_file, measure.section, found[-1].entry(), measure.key)
    finally:
        if found:
            report = report_in(arguments.format, Console())
            measure.report(found, report)
            report.end()


def _corruptions(arguments: EvalArguments) -> Measure:
    from fastpeer.evaluation.corruptions import KEY, SECTION, classify_corrupted, report_corruptions

    folder = arguments.corruptions
    assert folder is not None

    def find(protocol: "Protocol", target: "Target", watch: "Watch") -> Any:
        return classify_corrupted(protocol, target, arguments.data, arguments.model, folder, watch)

    return Measure(find, SECTION, KEY, report_corruptions)


def _certificate(arguments: EvalArguments) -> Measure:
    from fastpeer.evaluation.certificates import KEY, SECTION, certify_images, report_certificates

    smoothing = _smoothing(arguments)

    def find(protocol: "Protocol", target: "Target", watch: "Watch") -> Any:
        return certify_images(protocol, target, arguments.data, arguments.model, smoothing, watch)

    return Measure(find, SECTION, KEY, report_certificates)


def _smoothing(arguments: EvalArguments) -> "Smoothing":
    from fastpeer.evaluation.smoothing import Smoothing

    smoothing = Smoothing(
        arguments.certify, arguments.certify_n0, arguments.certify_n, arguments.certify_alpha, arguments.seed,
        arguments.batch_size,
    )  # fmt: skip
    if not smoothing.largest_radius:
        raise UserError(
            f"--certify-n {smoothing.samples} can certify nothing at --certify-alpha {smoothing.alpha:g}: use"
            " more"
        )
    return smoothing
