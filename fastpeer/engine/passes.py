"""The train-mode forwards of a method's table: which run as one batch, compiled as one, on which stream."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.compiling import compiled
from fastpeer.engine.batchnorm import let_count, set_counts
from fastpeer.engine.plan import Plan
from fastpeer.engine.precision import NumberFormat
from fastpeer.methods.table import Forward
from fastpeer.streams import new_stream

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pass:
    """One run of a network, over the images of one or more forwards."""

    network: str
    forwards: tuple[Forward, ...]


def group(forwards: Sequence[Forward], merge: bool) -> list[Pass]:
    """Split forwards into passes, in their order; neighbours of one network become one where `merge` says."""
    passes: list[Pass] = []
    for forward in forwards:
        if merge and passes and passes[-1].network == forward.network:
            passes[-1] = Pass(forward.network, (*passes[-1].forwards, forward))
        else:
            passes.append(Pass(forward.network, (forward,)))
    return passes


class Passes:
    """Computes the logits of all forwards.

    Args:
        forwards: of the method.
        networks: by name; their BatchNorms become counted ones.
        number_format: what to compute in.
        plan: what to merge, compile and put on a stream.
        say: takes a line about what could not be had.
    """

    def __init__(
        self, forwards: Sequence[Forward], networks: Mapping[str, nn.Module], number_format: NumberFormat,
        plan: Plan, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.networks = networks
        self.format = number_format
        self.device = next(networks["student"].parameters()).device
        for network in networks.values():
            let_count(network)
        passes = group(forwards, plan.merge)
        # Compiled as one region, peer and student share a schedule; on two streams they cannot.
        regions = _by_network(passes) if plan.streams else [passes]
        self._regions = [self._region(region, plan, say) for region in regions]
        self._side = new_stream(self.device) if plan.streams and len(regions) > 1 else None

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return logits (B, C) for each forward, from images by their name in the table."""
        if self._side is None:
            found = [region(inputs) for region in self._regions]
        else:
            found = self._on_two_streams(inputs, self._side)
        return [logits for region in found for logits in region]

    def _on_two_streams(
        self, inputs: Mapping[str, Tensor], side: torch.cuda.Stream
    ) -> list[tuple[Tensor, ...]]:
        """Run the first network's region beside the others'; what it allocates lives until they have met."""
        main = torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        for images in inputs.values():
            # The way back reads them on that stream too, when nothing here holds them any more.
            images.record_stream(side)
        with torch.cuda.stream(side):
            first = self._regions[0](inputs)
        others = [region(inputs) for region in self._regions[1:]]
        main.wait_stream(side)
        return [first, *others]

    def _region(self, passes: list[Pass], plan: Plan, say: Callable[[str], None]) -> Run:
        def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            with self.format.autocasting(self.device):
                return tuple(logits for one in passes for logits in self._logits(one, inputs))

        names = " and ".join(dict.fromkeys(one.network for one in passes))
        return compiled(run, f"training {names}", say) if plan.compile else run

    def _logits(self, one: Pass, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        network = self.networks[one.network]
        batches = [inputs[forward.images] for forward in one.forwards]
        set_counts(network, tuple(forward.counts for forward in one.forwards))
        logits: Tensor = network(batches[0] if len(batches) == 1 else torch.cat(batches))
        set_counts(network, (1,))
        return logits.chunk(len(batches))


def _by_network(passes: list[Pass]) -> list[list[Pass]]:
    names = dict.fromkeys(one.network for one in passes)
    return [[one for one in passes if one.network == name] for name in names]
