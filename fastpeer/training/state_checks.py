"""What the state in a checkpoint may be, checked before a run goes on with it: it may be a stranger's."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

MOST = 1 << 53
"""Of anything that is counted in a run."""


def check_state(state: Mapping[str, Any], steps_per_epoch: int, accuracies: tuple[str, ...]) -> None:
    """Check what is counted, and what was measured; tensors are compared with those that they replace.

    Args:
        state: as `Trainer` writes it.
        steps_per_epoch: of the run.
        accuracies: names that the student's accuracies have, such as clean and pgd10.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not as a run of these settings leaves it.
    """
    position = state["position"]
    counts = {name: position[name] for name in ("epoch", "in_epoch", "step")}
    counts |= {name: state[name] for name in ("swa_count", "log_length")}
    counts |= {name: state["interval"][name] for name in ("images", "nan_gradients", "skipped")}
    counts["rollbacks"] = state.get("rollbacks", 0)
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < MOST:
            raise ValueError(f"{name} must be a count, got {count!r}")
    if position["in_epoch"] > steps_per_epoch:
        raise ValueError(f"an epoch has {steps_per_epoch} steps, it stands at {position['in_epoch']}")
    if type(state["swa_measured"]) is not bool or not isinstance(state.get("log_sha256", ""), str):
        raise ValueError("swa_measured or log_sha256 is none")
    _check_summary(state["summary"], accuracies)


def _check_summary(summary: Mapping[str, Mapping[str, Any]], accuracies: tuple[str, ...]) -> None:
    for name, entry in summary.items():
        if name not in ("last", "best", "swa", "best-swa") or not {"epoch", *accuracies} <= entry.keys():
            raise ValueError(f"{name} was not measured by this run")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in entry.values()):
            raise ValueError(f"accuracies of {name} must be numbers")


def check_like(own: Tensor, found: Tensor) -> Tensor:
    """Return a tensor of a checkpoint that is to replace one of the run's.

    Raises:
        ValueError, AttributeError: it has another shape or dtype.
    """
    if found.shape != own.shape or found.dtype != own.dtype or found.is_meta:
        raise ValueError(f"must be {own.dtype} of shape {tuple(own.shape)}, got {found.dtype}")
    return found
