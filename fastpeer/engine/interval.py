"""What the log says of the steps between two of its lines."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from fastpeer.engine.loss import active_terms
from fastpeer.engine.step import StepResult, TrainingStep


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
