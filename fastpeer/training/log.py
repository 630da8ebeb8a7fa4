"""What a run writes down while it goes: means over steps, metrics.jsonl, TensorBoard events."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fastpeer.errors import UserError
from fastpeer.step.loss import active_terms
from fastpeer.step.step import StepResult, TrainingStep


class Interval:
    """Sums of what steps found since the last line of the log; stays on the device until it is read.

    Args:
        terms: names of the loss terms.
        forwards: names of the forwards.
        device: where the steps' results lie.
    """

    def __init__(self, terms: list[str], forwards: list[str], device: torch.device) -> None:
        self.terms = terms
        self.forwards = forwards
        self.device = device
        self._since = 0.0
        self._seen = 0
        self._clear()

    @classmethod
    def of(cls, step: TrainingStep) -> "Interval":
        """Return an empty one for what a step's table has."""
        forwards = [f"{forward.network}_{forward.images}" for forward in step.table.forwards]
        return cls(list(active_terms(step.method)), forwards, step.device)

    def add(self, result: StepResult, images: int) -> None:
        """Take in a step's result."""
        self._losses += result.losses.double() * images
        self._correct += result.correct
        self._nan_gradients += result.nan_gradients
        self._skipped += result.skipped
        self._images += images
        self._seen += images

    def record(self) -> dict[str, Any]:
        """Return means since the last call, and begin anew."""
        accuracies = (100 * self._correct / self._images).tolist()
        record = {
            "losses": self.losses(),
            "accuracy": dict(zip(self.forwards, accuracies, strict=True)),
            # Only now: reading the values has waited for the device to finish.
            "images_per_second": self._seen / (time.perf_counter() - self._since),
        }
        record |= self._faults()
        self._clear()
        return record

    def _faults(self) -> dict[str, int]:
        """Return what went wrong without stopping the run, where something did."""
        found = {"nan_gradients": int(self._nan_gradients), "skipped_steps": int(self._skipped)}
        return {name: count for name, count in found.items() if count}

    def losses(self) -> dict[str, float]:
        """Return the mean of each term so far."""
        means = self._losses / max(1, self._images)
        return dict(zip(self.terms, means.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return what is summed up so far, for a checkpoint."""
        return {
            "losses": self._losses.cpu(),
            "correct": self._correct.cpu(),
            "images": self._images,
            "nan_gradients": int(self._nan_gradients),
            "skipped": int(self._skipped),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self._losses = state["losses"].to(self.device)
        self._correct = state["correct"].to(self.device)
        self._images = state["images"]
        self._nan_gradients.fill_(state["nan_gradients"])
        self._skipped.fill_(state["skipped"])

    def restart_clock(self) -> None:
        """Leave out of images per second what went on before, such as an evaluation."""
        self._seen = 0
        self._since = time.perf_counter()

    def _clear(self) -> None:
        self._losses = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        self._correct = torch.zeros(len(self.forwards), dtype=torch.int64, device=self.device)
        self._nan_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._images = 0
        self.restart_clock()


class MetricsLog:
    """Appends records to a file.

    Args:
        file: metrics.jsonl.
        length: bytes to keep of what it already holds; what follows was written after the checkpoint
            that the run goes on from, and will be written again.
        tensorboard: folder for TensorBoard's events, if they are wanted.
        step: the run's step.
    """

    def __init__(self, file: Path, length: int, tensorboard: Path | None, step: int) -> None:
        self._path = file
        with self._named_errors():
            self._file = file.open("ab")
            self._file.truncate(min(length, self.length))
        self._writer: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=step)

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; nested numbers also go to TensorBoard, at the record's `step`."""
        with self._named_errors():
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in _numbers(record, ""):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write out what is buffered."""
        with suppress(OSError):
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror})") from None


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            yield prefix + name, value
