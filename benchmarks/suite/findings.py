"""What the stages have found, in few files: suite.json, logs, archives of plots, runs and compiled code."""

import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.display import short
from benchmarks.harness.process import Ended
from benchmarks.harness.record import read_json, write_json
from benchmarks.suite.stages import Section

Records = list[dict[str, Any]]


def headline(report: dict[str, Any] | None, ended: Ended) -> str:
    """Say what a section found, or why it found nothing."""
    lines = ended.output.splitlines()
    if report is None:
        return " ".join([ended.reason, *lines[-1:]]).strip()
    scripts = {
        "throughput": _fastest,
        "ablation": _gains,
        "methods": _methods,
        "checks": _checks,
        "kernels": _kernels,
        "timeline": _timeline,
        "roofline": _limits,
        "primitives": _efficiencies,
        "attack_strength": _attacks,
        "attack_signs": _signs,
        "accuracy_parity": _parity,
        "loader": _fastest,
        "evaluation_speed": _fastest,
        "kernel_errors": _errors,
        "environment": _failures,
        "compile_ahead": _compiling,
        "prepare_images": _prepared,
        "minutes": _accuracies,
        "attack_run": _accuracies,
        "repeatability": _differences,
        "tiles": _tiles,
    }
    found = scripts.get(report["script"], _count)(report)
    return "; ".join(part for part in (found, _lost(report), ended.reason) if part)


def _of(report: dict[str, Any], unit: str) -> Records:
    return [entry for entry in report["records"] if entry["unit"] == unit]


def _fastest(report: dict[str, Any]) -> str:
    rates = _of(report, "images/s")
    if not rates:
        return "nothing measured"
    best = max(rates, key=lambda entry: float(entry["value"]))
    gains = [entry for entry in _of(report, "times the first") if entry["name"] == best["name"]]
    gain = f", {short(gains[0]['value'])} × the first" if gains else ""
    return f"{best['name']}: {short(best['value'])} images/s{gain}"


def _gains(report: dict[str, Any]) -> str:
    gains = _of(report, "times without it")
    return ", ".join(f"{entry['name']} {short(entry['value'])} ×" for entry in gains) or _fastest(report)


def _methods(report: dict[str, Any]) -> str:
    gains = [entry for entry in _of(report, "times the first") if entry["name"].startswith("fastpeer")]
    found = (f"{entry['labels']['method']} {short(entry['value'])} × in {entry['name']}" for entry in gains)
    return ", ".join(found) or "nothing measured"


def _checks(report: dict[str, Any]) -> str:
    failed = report["notes"].get("failed", [])
    return f"FAILED: {', '.join(failed)}" if failed else f"{len(report['records'])} passed"


def _kernels(report: dict[str, Any]) -> str:
    own = [entry for entry in _of(report, "µs") if entry["name"].startswith("Triton, in a graph")]
    return ", ".join(f"{entry['labels']['kernel']} {short(entry['value'])} µs" for entry in own) or _count(
        report
    )


def _timeline(report: dict[str, Any]) -> str:
    sums = {entry["name"]: entry["value"] for entry in _of(report, "ms/step in all")}
    whole = [f"{entry['name']}: {short(entry['value'])} ms a step" for entry in _of(report, "ms/step")]
    return ", ".join(whole) + "; kernels " + ", ".join(f"{short(value)} ms" for value in sums.values())


def _limits(report: dict[str, Any]) -> str:
    limits = _of(report, "FLOP/s") + _of(report, "B/s")
    return ", ".join(f"{entry['name']} {short(entry['value'] / 1e12)} T{entry['unit']}" for entry in limits)


def _efficiencies(report: dict[str, Any]) -> str:
    shares = [entry["value"] for entry in _of(report, "% of matrix product")]
    span = f"{short(min(shares))} to {short(max(shares))}" if shares else "nothing"
    return f"convolutions at {span} % of a matrix product"


def _attacks(report: dict[str, Any]) -> str:
    off = [entry["value"] for entry in _of(report, "% off the reference")]
    return f"loss reached off by {min(off):+.2f} to {max(off):+.2f} %" if off else ""


def _signs(report: dict[str, Any]) -> str:
    found = _of(report, "% of signs as in float64")
    return "signs as in float64: " + ", ".join(f"{one['name']} {one['value']:.2f} %" for one in found)


def _parity(report: dict[str, Any]) -> str:
    found = _of(report, "% under PGD-20, all seeds")
    return ", ".join(f"{entry['name']} {entry['value']:.2f} % under PGD-20" for entry in found)


def _errors(report: dict[str, Any]) -> str:
    worst = max(report["records"], key=lambda entry: float(entry["value"]), default=None)
    return f"at most {worst['value']:.2f} {worst['unit']} ({worst['name']})" if worst else "nothing compared"


def _failures(report: dict[str, Any]) -> str:
    return f"{len(report['records']) - len(report['missing'])} of {len(report['records'])} as they should be"


def _compiling(report: dict[str, Any]) -> str:
    seconds = _of(report, "s to the first result")
    return ", ".join(f"{entry['name']}: {entry['value']:.0f} s to the first result" for entry in seconds)


def _prepared(report: dict[str, Any]) -> str:
    return ", ".join(
        f"{entry['name']} in {entry['value']:.1f} {entry['unit']}" for entry in report["records"]
    )


def _accuracies(report: dict[str, Any]) -> str:
    found = [entry for entry in report["records"] if entry["unit"].startswith("% under")]
    return ", ".join(
        f"{entry['value']:.2f} {entry['unit']} of {entry['labels']['images']}" for entry in found
    )


def _differences(report: dict[str, Any]) -> str:
    found = ((entry["name"], entry["value"]) for entry in report["records"])
    return ", ".join(
        f"{name}: {'the same bits' if value == 0 else f'off by {value:.1e}'}" for name, value in found
    )


def _tiles(report: dict[str, Any]) -> str:
    return f"the fastest tiles of {len(report['notes'].get('rows', []))} layers and directions"


def _count(report: dict[str, Any]) -> str:
    return f"{len(report['records'])} records"


def _lost(report: dict[str, Any]) -> str:
    names = [str(entry["name"]) for entry in report["missing"]]
    return f"not measured: {', '.join(names)}" if names else ""


LARGEST = 15 << 20
"""Bytes of an archive that may come back from a host."""
INTERMEDIATE = (".ttir", ".ttgir", ".llir", ".source")
"""What Triton writes on its way to a kernel, and does not need to run it."""
OF_A_RUN = (".jsonl", ".json", ".toml")
"""Files of a run that are kept: not its weights."""


class Findings:
    """A folder with what is known; sections that were run before keep their place until they are run again.

    Args:
        folder: for suite.json and the archives.
        work: folder in which the sections leave reports, plots and runs.
        circumstances: of the stage: device, versions, commit, settings.
    """

    def __init__(self, folder: Path, work: Path, circumstances: Mapping[str, Any]) -> None:
        self.folder = folder
        self.work = work
        self.circumstances = dict(circumstances)
        self.sections: dict[str, Any] = read_json(folder / "suite.json").get("sections", {})

    def keep(self, stage: str, section: Section, ended: Ended, report: Path) -> None:
        """Take in how a section ended or how far it is, and write everything."""
        found = read_json(report) if ended.state != "left out" else {}
        entry = {
            "stage": stage,
            **asdict(replace(ended, output="")),
            "last lines": ended.output.splitlines()[-20:],
            "headline": headline(found or None, ended),
            **self.circumstances,
            "report": found or None,
        }
        self.sections = merged(self.sections, {section.name: entry})
        self.save()

    def save(self) -> None:
        """Write suite.json, and the archives of plots and runs."""
        write_json(self.folder / "suite.json", {"sections": self.sections})
        plots = sorted((self.work / "reports").glob("*.png"))
        pack(self.folder / "plots.tar.gz", {plot.name: plot for plot in plots})
        runs = [file for file in sorted((self.work / "runs").glob("*/*")) if file.suffix in OF_A_RUN]
        pack(self.folder / "runs.tar.gz", {str(file.relative_to(self.work)): file for file in runs})

    def save_compiled_code(self, cache: Path) -> str:
        """Pack what was compiled, for a later stage on the same kind of device; say if it is too much."""
        packed = self.folder / "cache.tar.gz"
        if not cache.is_dir() or pack(packed, {cache.name: cache}, without=INTERMEDIATE):
            return ""
        packed.unlink(missing_ok=True)
        return f"compiled code is left behind: packed it takes more than {LARGEST >> 20} MiB"


def merged(former: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of two folders; of one name the later holds, unless the former has found out more."""
    found = dict(former)
    for name, entry in later.items():
        if _worth(entry) >= _worth(found.get(name, {})):
            found[name] = entry
    return found


def _worth(entry: Mapping[str, Any]) -> int:
    """Rank what is known of a section: done, with a report, or neither."""
    if entry.get("state") == "done":
        return 2
    return 1 if entry.get("report") else 0


def pack(path: Path, files: Mapping[str, Path], without: tuple[str, ...] = ()) -> bool:
    """Write an archive such that it is whole at any time; none where there are no files, or too much.

    Files whose names end as `without` says stay out. Returns whether it was written.
    """
    if not files:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with tarfile.open(beside, "w:gz", compresslevel=4) as archive:
        for name, file in files.items():
            archive.add(file, name, filter=lambda member: None if member.name.endswith(without) else member)
    fits = beside.stat().st_size <= LARGEST
    if fits:
        beside.replace(path)
    else:
        beside.unlink()
    return fits


def unpack_plots(folder: Path) -> Iterable[Path]:
    """Unpack the plots of a folder beside suite.json, and return them."""
    archive = folder / "plots.tar.gz"
    if not archive.is_file():
        return []
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        names = packed.getnames()
    return [folder / name for name in names]
