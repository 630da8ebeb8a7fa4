"""Losses and weights that are not finite: which, where, and how often a run goes back because of them."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import nn

from fastpeer.config import TrainConfig
from fastpeer.errors import UserError
from fastpeer.methods import Method
from fastpeer.run_folder import RunFolder
from fastpeer.step.loss import active_terms

log = logging.getLogger(__name__)


class NonFinite(UserError):
    """A loss or a weight is infinite or NaN: the training cannot go on from here."""


def first_non_finite(
    losses: Mapping[str, float], method: Method, networks: Mapping[str, nn.Module]
) -> tuple[str, str]:
    """Find a loss, or else a weight or buffer, that is not finite.

    Args:
        losses: means, by term of the method.
        method: the method.
        networks: whose weights to look at, by name.

    Returns:
        What it is, and details of it; empty where all is finite.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"the loss {name}", f"{value}, of the {active_terms(method)[name].prediction.network}"
    for name, network in networks.items():
        if bad := _first_of(network):
            return f"the weight {bad}", f"of the {name}"
    return "", ""


def last_good(run: RunFolder) -> str:
    """Tell which checkpoint of a run is from before its values were not finite."""
    last = run.checkpoint("last")
    return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"


def _first_of(network: nn.Module) -> str:
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    # One wait for the device, not one for each tensor.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    return next((name for name, good in zip(tensors, finite, strict=True) if not good), "")


def after_non_finite(error: NonFinite, config: TrainConfig, rollbacks: int) -> None:
    """Log that a run goes back to its last checkpoint, or end it.

    Args:
        error: what was not finite.
        config: whether, and how often, the run may go back.
        rollbacks: how often it went back before.

    Raises:
        UserError: train.on_nonfinite is stop, or the run went back as often as it may.
    """
    if config.on_nonfinite == "stop":
        raise error
    if rollbacks >= config.rollbacks:
        raise UserError(f"{error}; train.rollbacks lets a run go back {config.rollbacks} times") from None
    log.warning(
        "%s: going back to it, with %g times the learning rate (%d of %d times)",
        error, config.rollback_rate, rollbacks + 1, config.rollbacks,
    )  # fmt: skip
