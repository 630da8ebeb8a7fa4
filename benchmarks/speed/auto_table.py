"""The table that `auto` goes by, from what an ablation measured: fastpeer/step/measured.json.

python -m benchmarks.speed.auto_table benchmarks/results/2026-11-21-cpu-amd-epyc-2-cores/ablation.json
A row that was measured before, of the same part on the same device for the same work, is replaced.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.harness.program import start
from benchmarks.harness.record import read_json, write_json
from benchmarks.steps.cases import SHAPES
from fastpeer.errors import UserError
from fastpeer.step.measured import TABLE, Device, Gain, Workload, read_gains

SHIPPED = Path(__file__).resolve().parents[2] / "fastpeer" / "step" / TABLE


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Take what ablations measured into the table."""

    reports: tyro.conf.Positional[tuple[Path, ...]]
    """Reports of ablation.py, or suite.json files that hold some."""
    table: Path = SHIPPED
    """The table."""


def main(arguments: Arguments) -> None:
    """Read the reports, and write the table."""
    known = read_gains(arguments.table.read_text("utf-8")) if arguments.table.exists() else ()
    rows = {_question(gain): gain for gain in known}
    found = [gain for path in arguments.reports for report in _reports(path) for gain in gains_of(report)]
    for gain in found:
        rows[_question(gain)] = gain
        print(f"{gain.part}: {gain.reason} ({gain.workload.title})")
    if not found:
        raise UserError("no report of an ablation is among these")
    write_json(arguments.table, [asdict(gain) for gain in sorted(rows.values(), key=_question)])


def gains_of(report: Mapping[str, Any]) -> Iterable[Gain]:
    """Yield what a report says of the parts: taken away from the full step, or else added in turn.

    Of PeerAiD's step alone, since the table knows no methods.
    """
    records = [entry for entry in report["records"] if entry["labels"].get("method", "peeraid") == "peeraid"]
    taken_away = [entry for entry in records if entry["unit"] == "times without it"]
    names = {entry["name"] for entry in taken_away}
    added = [
        {**entry, "name": entry["name"].removeprefix("+ ")}
        for entry in records
        if entry["unit"] == "times the one above" and entry["name"].startswith("+ ")
    ]
    for record in [*taken_away, *(entry for entry in added if entry["name"] not in names)]:
        yield _gain(record, report)


def _gain(record: Mapping[str, Any], report: Mapping[str, Any]) -> Gain:
    facts, labels = report["facts"], record["labels"]
    kind = "cpu" if facts["cuda"] is None or facts["device"] == facts["cpu"] else "cuda"
    return Gain(
        part=record["name"],
        ratio=round(record["value"], 4),
        device=Device(kind=kind, name=facts["device"], capability=facts.get("capability") or ""),
        workload=Workload(
            network=labels["model"],
            size=SHAPES[labels["dataset"]][0],
            batch=labels["batch"],
            precision=report["settings"]["precision"],
        ),
        commit=_commit(facts["commit"]),
        date=facts["date"][:10],
    )


def _commit(told: str | None) -> str:
    """Shorten a commit's number; what was changed since then is not left out."""
    number, _, rest = (told or "unknown").partition(" ")
    return " ".join([number[:12], *([rest] if rest else [])])


def _question(gain: Gain) -> tuple[Any, ...]:
    device, work = gain.device, gain.workload
    return device.kind, device.name, work.network, work.size, work.batch, work.precision, gain.part


def _reports(path: Path) -> Iterable[dict[str, Any]]:
    content = read_json(path)
    sections = content.get("sections", {"": {"report": content}})
    reports = (section.get("report") for section in sections.values())
    return [entry for entry in reports if entry and entry.get("script") == "ablation"]


if __name__ == "__main__":
    start(main, Arguments)
