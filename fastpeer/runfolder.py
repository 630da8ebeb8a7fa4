"""A run is a folder; this says what lies where in it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.config import Config
from fastpeer.errors import UserError, one_line
from fastpeer.recipe import dump_recipe, load_recipe


@dataclass(frozen=True)
class RunFolder:
    """The files of a run below `path`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """All settings, as a recipe that `fastpeer train` takes."""
        return self.path / "config.toml"

    @property
    def facts_file(self) -> Path:
        """What the settings do not say: the data set's folder and checksums, the device, versions."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """A line of JSON for each logging interval and each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """What `fastpeer eval` found."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """The folder with last, best and best-swa."""
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_file.is_file()

    def create(self, config: Config, facts: Mapping[str, Any], force: bool) -> None:
        """Begin a run here.

        Raises:
            UserError: a run or anything else lies here, or the folder cannot be made.
        """
        if self.exists and not force:
            raise UserError(
                f"{self.path} already holds a run: --resume goes on with it, --force deletes it,"
                " another --out leaves it alone"
            )
        if self.path.exists() and not self.exists and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} holds something else than a run: choose another --out")
        try:
            if self.exists:
                shutil.rmtree(self.path)
            self.checkpoints.mkdir(parents=True)
            self.facts_file.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
            self.config_file.write_text(dump_recipe(config), "utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({one_line(error)})") from None

    def read_config(self) -> Config:
        """Return the settings that the run was started with."""
        if not self.exists:
            raise UserError(f"no run in {self.path}: config.toml is missing")
        return load_recipe(str(self.config_file))

    def read_facts(self) -> dict[str, Any]:
        """Return what `run.json` holds."""
        try:
            facts: dict[str, Any] = json.loads(self.facts_file.read_text("utf-8"))
            return facts
        except (OSError, ValueError) as error:
            raise UserError(f"{self.facts_file}: cannot be read ({one_line(error)})") from None


def newest_run(folder: Path = Path("runs")) -> RunFolder:
    """Return the run below `folder` that was written to last."""
    runs = [RunFolder(path) for path in folder.glob("*/") if RunFolder(path).exists]
    if not runs:
        raise UserError(f"no run in {folder}/: name one, or train one with fastpeer train")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in run.path.iterdir()))
