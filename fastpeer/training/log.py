"""A run's metrics: means over steps, and metrics.jsonl."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from fastpeer.config import Config
from fastpeer.run_folder import RunFolder
from fastpeer.step.loss import active_terms
from fastpeer.step.step import StepResult, TrainingStep
from fastpeer.training.loggers import Beginning, Mark, mark_of, open_loggers
from fastpeer.training.metrics_file import LogMark, MetricsFile
from fastpeer.training.state_checks import check_like

log = logging.getLogger(__name__)


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
        self._nonfinite_gradients += result.nonfinite_gradients
        self._skipped += result.skipped
        self._images += images
        self._timed_images += images

    def record(self) -> dict[str, Any]:
        """Return the means since the last call and reset the sums; see `means`."""
        record = self.means()
        self._clear()
        return record

    def means(self) -> dict[str, Any]:
        """Return the means since the sums were reset, and keep the sums; it waits for the device.

        Returns:
            losses by term, accuracy in % by forward, images_per_second, and the counts of gradient values
            that were not finite and of skipped steps, where there were any.
        """
        accuracies = (100 * self._correct / self._images).tolist()
        return {
            "losses": self.losses(),
            "accuracy": dict(zip(self.forwards, accuracies, strict=True)),
            # Evaluated last: the reads above have waited for the device to finish all launched steps.
            "images_per_second": self._timed_images / (time.perf_counter() - self._timed_since),
            **self._fault_counts(),
        }

    def _fault_counts(self) -> dict[str, int]:
        """Return how often something went wrong without stopping the run; empty if nothing did."""
        counts = {"nonfinite_gradients": int(self._nonfinite_gradients), "skipped_steps": int(self._skipped)}
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
            # The name is that of checkpoints from before infinite values were counted too.
            "nan_gradients": int(self._nonfinite_gradients),
            "skipped": int(self._skipped),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sums of a checkpoint's `state`."""
        self._losses.copy_(check_like(self._losses, state["losses"]))
        self._correct.copy_(check_like(self._correct, state["correct"]))
        self._images = state["images"]
        self._nonfinite_gradients.fill_(state["nan_gradients"])
        self._skipped.fill_(state["skipped"])

    def restart_clock(self) -> None:
        """Exclude the time so far, an evaluation's for instance, from images per second."""
        self._timed_images = 0
        self._timed_since = time.perf_counter()

    def _clear(self) -> None:
        self._losses = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        self._correct = torch.zeros(len(self.forwards), dtype=torch.int64, device=self.device)
        self._nonfinite_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._images = 0
        self.restart_clock()


def report_faults(record: Mapping[str, Any]) -> None:
    """Warn about gradients that are not finite and skipped steps: a weak attack or a slow start, it seems."""
    if "nonfinite_gradients" in record:
        counts = record["step"], record["nonfinite_gradients"]
        log.warning("step %d: the attack met %d values in its gradients that are NaN or infinite", *counts)
    if "skipped_steps" in record:
        counts = record["step"], record["skipped_steps"]
        log.warning("step %d: %d steps skipped because fp16 gradients overflowed", *counts)


class MetricsLog:
    """Appends records to metrics.jsonl, and hands them to the loggers of log.to.

    Args:
        run: the run's folder; metrics.jsonl is created if it is missing.
        config: the run's settings.
        mark: where the checkpoint that the run resumes from left metrics.jsonl; later lines will be written
            again.

    Attributes:
        records: number of those that were written.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, run: RunFolder, config: Config, mark: LogMark) -> None:
        self.records = 0
        self.file = MetricsFile(run.metrics_file, mark)
        self._loggers = open_loggers(Beginning(run, config, mark.step, frozenset(_marks(self.file.cut))))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line; numbers, nested ones too, also go to the loggers at the record's `step`.

        Raises:
            UserError: the file cannot be written.
        """
        self.file.append(record)
        self.records += 1
        for logger in self._loggers:
            logger.write(record)

    def close(self) -> None:
        """Close metrics.jsonl and the loggers."""
        self.file.close()
        for logger in self._loggers:
            logger.close()


def _marks(lines: bytes) -> Iterator[Mark]:
    """Yield what the loggers were told already by lines that are cut; the last may be incomplete."""
    for line in lines.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            yield mark_of(json.loads(line))
