"""What the stages have found, in few files: suite.json, logs, archives of plots, runs and compiled code."""

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.process import Ended
from harness.record import write_json
from suite.headlines import headline
from suite.sections import Section

LARGEST = 15 << 20
"""Bytes of an archive that may come back from a host."""
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
        self.sections: dict[str, Any] = read(folder / "suite.json").get("sections", {})

    def keep(self, stage: str, section: Section, ended: Ended, report: Path) -> None:
        """Take in how a section ended or how far it is, and write everything."""
        found = read(report) if ended.state != "left out" else {}
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

    def save_compiled_code(self, cache: Path) -> None:
        """Pack what was compiled, for a later stage on the same kind of device, unless it is too much."""
        pack(self.folder / "cache.tar.gz", {cache.name: cache} if cache.is_dir() else {})


def merged(former: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of two folders; of one name the later holds, unless only the former has a report."""
    found = dict(former)
    for name, entry in later.items():
        if entry.get("report") or not found.get(name, {}).get("report"):
            found[name] = entry
    return found


def read(path: Path) -> dict[str, Any]:
    """Return a JSON file's content, as far as there is one."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def pack(path: Path, files: Mapping[str, Path]) -> None:
    """Write an archive such that it is whole at any time; none where there are no files, or too much."""
    if not files:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with tarfile.open(beside, "w:gz", compresslevel=4) as archive:
        for name, file in files.items():
            archive.add(file, name)
    if beside.stat().st_size <= LARGEST:
        beside.replace(path)
    else:
        beside.unlink()


def unpack_plots(folder: Path) -> Iterable[Path]:
    """Unpack the plots of a folder beside suite.json, and return them."""
    archive = folder / "plots.tar.gz"
    if not archive.is_file():
        return []
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        names = packed.getnames()
    return [folder / name for name in names]
