"""What networks say in eval mode: the targets of attacks, and the logits of frozen teachers."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from fastpeer.methods.table import Forward, Network
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import evaluating


class Predictions:
    """Eval-mode logits, each computed once a step; frozen networks are folded once and for all.

    Args:
        names: networks that are asked, or attacked in eval mode.
        networks: of the run.
        trained: those whose weights move.
        victim_factory: how they are run.

    Attributes:
        victims: the networks as they are run, by name.
    """

    def __init__(
        self, names: Collection[Network], networks: Mapping[str, nn.Module], trained: Collection[Network],
        victim_factory: VictimFactory,
    ) -> None:  # fmt: skip
        self._networks = networks
        self.victims: dict[str, Victim] = {
            name: victim_factory.victim(networks[name], name) for name in dict.fromkeys(names)
        }
        self._moving = [victim for name, victim in self.victims.items() if name in trained]
        self._known: dict[Forward, Tensor] = {}
        for victim in self.victims.values():
            victim.refresh()

    @contextmanager
    def of_one_step(self) -> Iterator[None]:
        """Take up the weights that trained networks have now; let go of the logits at the end."""
        for victim in self._moving:
            victim.refresh()
        try:
            yield
        finally:
            self._known.clear()

    def logits(self, forward: Forward, images: Tensor) -> Tensor:
        """Return the logits (B, C) of a forward's network on its images."""
        if forward not in self._known:
            with evaluating(self._networks[forward.network]):
                self._known[forward] = self.victims[forward.network].logits(images)
        return self._known[forward]
