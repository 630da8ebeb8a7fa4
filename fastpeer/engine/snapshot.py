"""What a training step changes, kept aside and brought back."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def keep_state(
    networks: Iterable[nn.Module], others: Iterable[Tensor], optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Callable[[], None]:  # fmt: skip
    """Copy weights, buffers, other tensors, momentum, loss scale and CUDA's random state; drop gradients.

    Returns:
        Brings all of it back, into the same memory, as often as it is called.
    """
    tensors = [*_tensors(networks), *others, *_momenta(optimizer)]
    copies = [one.detach().clone() for one in tensors]
    scale = scaler.state_dict()
    random = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def restore() -> None:
        optimizer.zero_grad(set_to_none=True)
        _forget_interrupted_step(optimizer, scaler)
        for one, copy in zip(tensors, copies, strict=True):
            one.copy_(copy)
        if scale:
            scaler.load_state_dict(scale)
        if random is not None:
            torch.cuda.set_rng_state(random)

    return restore


def _forget_interrupted_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Drop what a scaler leaves with itself and a fused optimizer if the step between fails."""
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):
        if hasattr(optimizer, name):
            delattr(optimizer, name)


def _tensors(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [one for network in networks for one in (*network.parameters(), *network.buffers())]


def _momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
