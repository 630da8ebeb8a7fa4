"""What a stranger's run folder may hold, file by file: read, gone on with and evaluated."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fastpeer.checkpoint import good_checkpoint, load_state, saved_settings
from fastpeer.cli.main import main
from fastpeer.config import Config
from fastpeer.data.dataset import open_dataset
from fastpeer.errors import UserError
from fastpeer.evaluation.results import read_results, store_results
from fastpeer.evaluation.targets import find_targets
from fastpeer.evaluation.verdicts import Verdicts, VerdictsFile
from fastpeer.manifest import MANIFEST, write_manifest
from fastpeer.run_folder import RunFolder
from fastpeer.training.metrics_file import LogMark, MetricsFile
from fastpeer.training.progress import Reporter
from fastpeer.training.setup import TrainingSetup, set_up
from fastpeer.training.signals import StopRequest
from fastpeer.training.trainer import Trainer
from tests.cli.cli_files import RECIPE, make_images
from tests.fuzz.commands import command

LAST = "checkpoints/last"
VERDICTS = (5, ("apgd-ce", "square"), 2)
VALUES = (
    0, -1, 1, 3.5, float("nan"), float("inf"), 1 << 53, 1 << 64, 10**400, True, None, "", "\x1b[2J", (), [1],
    {}, {"epoch": 0}, torch.zeros(()), torch.zeros(3), torch.ones(1 << 20), torch.zeros(2, 2).bool(),
    torch.full((4,), float("nan")), torch.empty(0), torch.tensor(1).expand(1 << 40),
    torch.zeros(3).to_sparse(), torch.empty(3, device="meta"), torch.zeros(3, dtype=torch.complex64),
)  # fmt: skip
"""What may stand in place of a part of a state."""


def make_run(folder: Path) -> Path:
    """Train a run in `folder/example`, stop it within its second epoch, and evaluate it."""
    run = folder / "example"
    if not run.exists():
        photos = make_images(folder / "photos", ["ant", "bee"], 6, 2, 8)
        (folder / "tiny.toml").write_text(RECIPE, "utf-8")
        data = ["--data", str(folder / "data")]
        words = ["--dataset", "folder", "--source", str(photos), "--out", str(folder / "data")]
        for line in (
            ["prep", *words, "--quiet", "--workers", "1"],
            ["train", str(folder / "tiny.toml"), *data, "--out", str(run), "--quiet", "--train.epochs", "2",
             "--train.batch-size", "4", "--train.max-steps", "4", "--log.every", "1"],
            ["eval", str(run), "--attacks", "clean", "--quiet"],
        ):  # fmt: skip
            assert main(line) == 0
        verdicts = VerdictsFile(run / "verdicts", {})
        verdicts.keep(Verdicts(*VERDICTS))
    return run


@cache
def _setup(folder: Path) -> TrainingSetup:
    config = RunFolder(folder / "example").read_config()
    dataset = open_dataset(folder / "data")
    return set_up(config, dataset, torch.device("cpu"), {})


def copy_with(place: Path, part: str, data: bytes) -> RunFolder:
    """Return a copy of the run of which a file holds these bytes."""
    run = Path(shutil.copytree(place.parent / "example", place / "run", symlinks=True))
    (run / part).write_bytes(data)
    return RunFolder(run)


def examples_of(part: str) -> Callable[[Path], list[bytes]]:
    """Return what makes the examples of a run's file."""
    return lambda folder: [(make_run(folder) / part).read_bytes()]


def go_on(run: RunFolder, folder: Path) -> None:
    """Resume a run, and train for a step."""
    setup, config = _setup(folder), run.read_config()
    trainer = Trainer(run, _until(config, 5), setup, Reporter(), StopRequest())
    trainer.resume()
    trainer.train()


def _until(config: Config, steps: int) -> Config:
    object.__setattr__(config.train, "max_steps", steps)
    return config


def use_state(data: bytes, place: Path) -> None:
    """Go on from a state, changed as the bytes lead to, of which the manifest is right."""
    run = copy_with(place, "notes", b"")
    folder = run.checkpoint("last")
    state, source = load_state(folder), random.Random(data)
    for _ in range(source.choice((1, 1, 1, 3))):
        _change(state, source)
    torch.save(state, folder / "state.pt")
    _write_anew(folder)
    with suppress(UserError):
        command(["info", str(run.path)], place)
    go_on(run, place.parent)


def _change(value: Any, source: random.Random) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = source.choice(keys)
    if isinstance(value[key], (dict, list)) and value[key] and source.random() < 0.9:
        _change(value[key], source)
    elif isinstance(value, dict) and source.random() < 0.2:
        del value[key]
    else:
        value[key] = source.choice(VALUES)


def _write_anew(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    write_manifest(folder)


def use_own_checkpoint_file(name: str) -> Callable[[bytes, Path], None]:
    """Return what goes on with a checkpoint, and evaluates it, after a file was changed with its checksum."""

    def use(data: bytes, place: Path) -> None:
        run = copy_with(place, f"{LAST}/{name}", data)
        _write_anew(run.checkpoint("last"))
        saved_settings(run.checkpoint("last"))
        with suppress(UserError):
            command(["info", f"{run.path}/{LAST}"], place)
        with suppress(UserError):
            find_targets([run.path], "last")
        go_on(run, place.parent)

    return use


def use_known_checkpoint_file(name: str) -> Callable[[bytes, Path], None]:
    """Return what goes on with a checkpoint after a file was changed and its checksum was not."""

    def use(data: bytes, place: Path) -> None:
        whole = (place.parent / "example" / LAST / name).read_bytes()
        run = copy_with(place, f"{LAST}/{name}", data)
        found, damage = good_checkpoint(run.checkpoints, "last")
        assert data == whole or (damage and found.resolve() != run.checkpoint("last").resolve())
        if damage and name != "student.safetensors":
            raise UserError(damage)
        if name == "student.safetensors":
            find_targets([run.path], "last")
            assert data == whole, "changed weights with a known checksum were evaluated"

    return use


def use_manifest(data: bytes, place: Path) -> None:
    """Use a checkpoint with a changed manifest."""
    run = copy_with(place, f"{LAST}/{MANIFEST}", data)
    good_checkpoint(run.checkpoints, "last")
    find_targets([run.path], "last")


def use_looked_at(part: str) -> Callable[[bytes, Path], None]:
    """Return what tells of a run of which a file was changed, and resumes it."""

    def use(data: bytes, place: Path) -> None:
        run = copy_with(place, part, data)
        for name in ("runs", "info"):
            command([name, str(run.path)], place)
        run.read_facts()
        find_targets([run.path], "all")

    return use


def use_metrics(data: bytes, place: Path) -> None:
    """List a run with a changed log, and open the log as a resumed run does."""
    run = copy_with(place, "metrics.jsonl", data)
    command(["runs", str(run.path)], place)
    state = load_state(run.checkpoint("last"))
    for recorded in (state["log_sha256"], ""):
        mark = LogMark(state["log_length"], recorded, state["position"]["step"])
        MetricsFile(run.metrics_file, mark).close()


def use_results(data: bytes, place: Path) -> None:
    """List a run with changed results, and add to them."""
    run = copy_with(place, "results.json", data)
    command(["runs", str(run.path)], place)
    store_results(run.results_file, read_results(place.parent / "example" / "results.json"))


def verdict_examples(folder: Path) -> list[bytes]:
    """Return the verdicts of the run."""
    return [path.read_bytes() for path in (make_run(folder) / "verdicts").iterdir()]


def _with_own_checksum(data: bytes) -> bytes:
    with suppress(ValueError, RecursionError):
        entry = json.loads(data)
        if isinstance(entry, dict):
            left = {name: value for name, value in entry.items() if name != "sha256"}
            text = json.dumps(left, sort_keys=True)
            return json.dumps({**left, "sha256": sha256(text.encode()).hexdigest()}).encode()
    return data


def use_verdicts(data: bytes, place: Path) -> None:
    """Go on with changed verdicts."""
    file = VerdictsFile(place, {})
    file.path.write_bytes(_with_own_checksum(data))
    verdicts = Verdicts(*VERDICTS)
    file.go_on(verdicts)
    verdicts.counts()
    verdicts.batches_left()
    file.keep(verdicts)
