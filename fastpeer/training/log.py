"""A run's metrics: means over steps, metrics.jsonl, TensorBoard events."""

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
    """Sums of the steps' losses and hits since the last line of the log.

    The sums stay on the device: adding a step never waits for it, only reading them does.

    Args:
        terms: names of the loss terms.
        forwards: names of the forwards, such as student_adversarial.
        device: the device of the steps' results.
    """

    def __init__(self, terms: list[str], forwards: list[str], device: torch.device) -> None:
        self.terms = terms
        self.forwards = forwards
        self.device = device
        self._timed_since = 0.0
        self._timed_images = 0
        self._clear()

    @classmethod
    def of(cls, step: TrainingStep) -> "Interval":
        """Return an empty interval with the terms and forwards of a step's table."""
        forwards = [f"{forward.network}_{forward.images}" for forward in step.table.forwards]
        return cls(list(active_terms(step.method)), forwards, step.device)

    def add(self, result: StepResult, images: int) -> None:
        """Add the result of a step on so many images."""
        # In float64: thousands of float32 values would lose digits in a float32 sum.
        self._losses += result.losses.double() * images
        self._correct += result.correct
        self._nan_gradients += result.nan_gradients
        self._skipped += result.skipped
        self._images += images
        self._timed_images += images

    def record(self) -> dict[str, Any]:
        """Return the means since the last call and reset the sums.

        Returns:
            losses by term, accuracy in % by forward, images_per_second, and the counts of NaN gradients and
            skipped steps where there were any.
        """
        accuracies = (100 * self._correct / self._images).tolist()
        record = {
            "losses": self.losses(),
            "accuracy": dict(zip(self.forwards, accuracies, strict=True)),
            # Evaluated last: the reads above have waited for the device to finish all launched steps.
            "images_per_second": self._timed_images / (time.perf_counter() - self._timed_since),
        }
        record |= self._fault_counts()
        self._clear()
        return record

    def _fault_counts(self) -> dict[str, int]:
        """Return how often something went wrong without stopping the run; empty if nothing did."""
        counts = {"nan_gradients": int(self._nan_gradients), "skipped_steps": int(self._skipped)}
        return {name: count for name, count in counts.items() if count}

    def losses(self) -> dict[str, float]:
        """Return the mean of each loss term over the images so far."""
        means = self._losses / max(1, self._images)
        return dict(zip(self.terms, means.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return the sums for a checkpoint, on the CPU: a resumed run logs the same means."""
        return {
            "losses": self._losses.cpu(),
            "correct": self._correct.cpu(),
            "images": self._images,
            "nan_gradients": int(self._nan_gradients),
            "skipped": int(self._skipped),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums of a checkpoint's `state`."""
        self._losses = state["losses"].to(self.device)
        self._correct = state["correct"].to(self.device)
        self._images = state["images"]
        self._nan_gradients.fill_(state["nan_gradients"])
        self._skipped.fill_(state["skipped"])

    def restart_clock(self) -> None:
        """Exclude the time so far, an evaluation's for instance, from images per second."""
        self._timed_images = 0
        self._timed_since = time.perf_counter()

    def _clear(self) -> None:
        self._losses = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        self._correct = torch.zeros(len(self.forwards), dtype=torch.int64, device=self.device)
        self._nan_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._images = 0
        self.restart_clock()


class MetricsLog:
    """Appends records to metrics.jsonl, and to TensorBoard's events if they are wanted.

    Args:
        file: metrics.jsonl; created if it is missing.
        length: bytes to keep of the existing file; later lines were written after the checkpoint that the run
            resumes from, and will be written again.
        tensorboard: folder for TensorBoard's events, or None.
        step: the run's step; TensorBoard's events from there on are dropped.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, file: Path, length: int, tensorboard: Path | None, step: int) -> None:
        self._path = file
        with self._refused_write():
            self._file = file.open("ab")
            self._file.truncate(min(length, self.length))
        self._writer: Any = None
        if tensorboard is not None:
            # Imported here: a run may do without it (log.tensorboard).
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=step)

    @property
    def length(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line; numbers, nested ones too, also go to TensorBoard at the record's `step`.

        Raises:
            UserError: the file cannot be written.
        """
        with self._refused_write():
            self._file.write(json.dumps(record).encode() + b"\n")
            # At once: a kill loses no line, and `length` sees only what has left the buffer.
            self._file.flush()
        if self._writer is not None:
            for name, value in _numbers(record, ""):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close metrics.jsonl and TensorBoard's writer."""
        # `write` has flushed each line and reported its error: a second one on closing would hide it.
        with suppress(OSError):
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _refused_write(self) -> Iterator[None]:
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
