"""What networks say in eval mode: the targets of attacks, and the logits of frozen teachers."""

from collections.abc import Collection, Mapping

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

    def begin(self) -> None:
        """Begin a step: take up the weights that trained networks have now."""
        self._known.clear()
        for victim in self._moving:
            victim.refresh()

    def end(self) -> None:
        """Let go of the step's logits."""
        self._known.clear()

    def logits(self, forward: Forward, images: Tensor) -> Tensor:
        """Return the logits (B, C) of a forward's network on its images."""
        if forward not in self._known:
            with evaluating(self._networks[forward.network]):
                self._known[forward] = self.victims[forward.network].logits(images)
        return self._known[forward]
