"""A run's checkpoints, as its training writes them and finds them again."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastpeer.checkpoint import damage_of, good_checkpoint, keep_checkpoint, put_back, save_checkpoint
from fastpeer.config import Config
from fastpeer.config.toml import dump_recipe
from fastpeer.errors import UserError
from fastpeer.links import checkpoint_folder
from fastpeer.manifest import MANIFEST
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.run_folder import RunFolder, network_name
from fastpeer.training.setup import TrainingSetup
from fastpeer.versions import version_of

log = logging.getLogger(__name__)


class Checkpoints:
    """Writes and finds the checkpoints of a run.

    Args:
        run: the run's folder.
        config: the run's settings.
        setup: data and networks.
    """

    def __init__(self, run: RunFolder, config: Config, setup: TrainingSetup) -> None:
        self._folder = run.checkpoints
        self._config = config
        self._setup = setup
        self._settings = dump_recipe(config)
        self._fallback: Path | None = None
        self._saved = time.monotonic()

    def find(self) -> Path:
        """Return the folder of the last checkpoint that is whole; log what is wrong with others.

        Raises:
            UserError: there is none.
        """
        folder, damage = good_checkpoint(self._folder, "last")
        if damage:
            log.warning("%s; going on from %s instead", damage, folder)
            self._fallback = folder
        elif not (folder / MANIFEST).is_file():
            log.info("note: %s has no checksums, as an older fastpeer wrote it: it cannot be checked", folder)
        for name in ("best", "best-swa"):
            path = checkpoint_folder(self._folder / name)
            if (damage := damage_of(path)) and path.exists():
                log.warning("%s; the run goes on, and a better epoch will replace %s", damage, name)
        return folder

    def begin(self) -> None:
        """Let the name last stand for what `find` returned.

        Raises:
            UserError: it cannot be written.
        """
        if self._fallback is not None:
            try:
                put_back(self._folder, "last", self._fallback)
            except OSError as error:
                raise UserError(f"{self._folder}: cannot be written ({error.strerror})") from None
            self._fallback = None

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than checkpoint.every_minutes."""
        minutes = self._config.checkpoint.every_minutes
        return 0 < 60 * minutes <= time.monotonic() - self._saved

    def keeps(self, epoch: int) -> bool:
        """Whether the checkpoint at the end of an epoch, counted from 0, is one to keep."""
        every = self._config.checkpoint.keep_every
        return every > 0 and (epoch + 1) % every == 0

    def keep(self, epoch: int) -> None:
        """Keep the checkpoint last as that of an epoch."""
        keep_checkpoint(self._folder, "last", f"epoch-{epoch}")

    def save(self, name: str, step: int, networks: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
        """Write a checkpoint; see `save_checkpoint`."""
        dataset = self._setup.dataset
        facts = {
            file: WeightFacts(
                network=network_name(self._config, Path(file)), classes=self._setup.classes, step=step,
                method=self._config.method, dataset=dataset.name, size=dataset.size,
                version=version_of("fastpeer") or "",
            )
            for file in networks
        }  # fmt: skip
        is_last = name == "last"
        save_checkpoint(self._folder, name, step, networks, state, facts, self._settings, is_last)
        if is_last:
            self._saved = time.monotonic()
