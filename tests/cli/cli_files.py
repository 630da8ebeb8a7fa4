"""A tiny data set, a recipe for it, and what tests ask of a command line's outcome."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

RECIPE = """
[model]
student = "resnet8"
peer = "resnet8"
[data]
dataset = "photos"
[attack]
steps = 1
[optim]
milestones = [1, 2]
[train]
batch_size = 8
epochs = 3
[selection]
steps = 1
[log]
every = 2
to = []
"""
STEPS = 15
"""40 images, 4 of them held out, in batches of 8, three times."""


def make_images(root: Path, classes: Sequence[str], train: int, test: int, side: int) -> Path:
    """Write train/CLASS/*.png and test/CLASS/*.png, each class of a colour of its own."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = random.integers(0, 120, (side, side, 3))
                pixels[..., number % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
    return root


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    def succeeded(self) -> Outcome:
        """Require exit code 0 and nothing to complain about."""
        assert self.code == 0, self.err
        assert self.err == ""
        return self

    def warned(self, *words: str) -> Outcome:
        """Require exit code 0 and warnings that hold the words."""
        assert self.code == 0, self.err
        for word in words:
            assert word in self.err, self.err
        return self

    def refused(self, *words: str) -> str:
        """Require a single line of complaint that holds the words; return it."""
        assert self.code not in (0, None), self.out
        assert self.err.startswith("fastpeer: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        assert "\x1b" not in self.err
        for noise in ("─", "-----", "│", "Error parsing", "helptext", "enforce fail"):
            assert noise not in self.err, self.err
        for word in words:
            assert word in self.err, self.err
        return self.err


def weights(run: Path) -> dict[str, str]:
    """Checksums of all networks in a run's checkpoints."""
    files = sorted((run / "checkpoints").glob("*/*.safetensors"))
    assert files
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Everything that lies in a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from run to run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [
        {name: value for name, value in record.items() if name != "images_per_second"} for record in records
    ]


def results(file: Path) -> list[dict[str, Any]]:
    """The entries of a results.json."""
    entries: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["results"]
    return entries


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a real process."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastpeer", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a real process."""
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


def rows(shown: str) -> dict[str, list[str]]:
    """The table's rows by the last part of their first cell, such as `run best`."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in shown.splitlines()]
    return {row[0].split("/")[-1]: row[1:] for row in cells if len(row) > 1}
