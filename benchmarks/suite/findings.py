"""What the stages have found, in few files: suite.json, logs, archives of plots, runs and compiled code."""

import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.process import Ended
from benchmarks.harness.record import read_json, write_json
from benchmarks.suite.headlines import headline
from benchmarks.suite.sections import Section

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
        pack(self.folder / "plots.tar.gz", {one.name: one for one in plots})
        runs = [one for one in sorted((self.work / "runs").glob("*/*")) if one.suffix in OF_A_RUN]
        pack(self.folder / "runs.tar.gz", {str(one.relative_to(self.work)): one for one in runs})

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
            archive.add(file, name, filter=lambda one: None if one.name.endswith(without) else one)
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
