"""Logits in eval mode: the targets of attacks, and the outputs of frozen teachers."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from fastpeer.methods.table import Forward, Network
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import evaluating


class Predictions:
    """Eval-mode logits, each computed once a step; frozen networks are folded only once, at the beginning.

    Args:
        names: networks whose predictions are wanted, or which are attacked in eval mode.
        networks: all of the run, by name.
        trained: names of those whose weights change.
        factory_of: returns what makes the folded or compiled form in which a network runs, by its name.

    Attributes:
        victims: the form in which each network runs, by name.
    """

    def __init__(
        self, names: Collection[Network], networks: Mapping[str, nn.Module], trained: Collection[Network],
        factory_of: Callable[[Network], VictimFactory],
    ) -> None:  # fmt: skip
        self._networks = networks
        self.victims: dict[Network, Victim] = {
            name: factory_of(name).victim(networks[name], name) for name in dict.fromkeys(names)
        }
        self._trained_victims = [victim for name, victim in self.victims.items() if name in trained]
        self._cached: dict[Forward, Tensor] = {}
        for victim in self.victims.values():
            victim.refresh()

    @contextmanager
    def of_one_step(self) -> Iterator[None]:
        """Fold the present weights of trained networks; at the end, drop the logits of this step."""
        for victim in self._trained_victims:
            victim.refresh()
        try:
            yield
        finally:
            self._cached.clear()

    def logits(self, forward: Forward, images: Tensor) -> Tensor:
        """Return the logits (B, C) of a forward's network on images (B, 3, H, W), cached within a step."""
        if forward not in self._cached:
            # The victim may run layers of the network itself, which have to be in eval mode.
            with evaluating(self._networks[forward.network]):
                self._cached[forward] = self.victims[forward.network].logits(images)
        return self._cached[forward]
