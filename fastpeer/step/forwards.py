"""The train-mode forwards of a method's table: which run as one batch, compiled as one, on which stream."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from fastpeer.device import new_stream
from fastpeer.methods.table import Forward
from fastpeer.step.compile import Compiler
from fastpeer.step.double_backward import cheap_double_backward
from fastpeer.step.options import Options
from fastpeer.step.precision import NumberFormat
from fastpeer.step.split_batchnorm import count_batches, set_updates, split_batchnorms

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pass:
    """One run of a network, over the images of one or more forwards.

    Attributes:
        forwards: whose images make up its batch, in equal parts.
        updates: numbers of the parts in the order in which BatchNorm sees them.
        learns: a gradient goes back through it.
        alone: it is differentiated twice, which nothing compiled can be.
    """

    forwards: tuple[Forward, ...]
    updates: tuple[int, ...]
    learns: bool
    alone: bool = False

    @property
    def network(self) -> str:
        """Which network runs."""
        return self.forwards[0].network

    def with_another(self, forward: Forward) -> "Pass":
        """Return the pass that makes one more forward, or one of its own once more."""
        forwards = self.forwards if forward in self.forwards else (*self.forwards, forward)
        return Pass(forwards, (*self.updates, forwards.index(forward)), self.learns, self.alone)


@dataclass(frozen=True)
class Differentiated:
    """What of the forwards goes back: those that learn, and those of them that are differentiated twice."""

    learning: Collection[Forward]
    twice: Collection[Forward] = ()


def group(
    forwards: Sequence[Forward], differentiated: Differentiated, merge: bool, unsplit: Collection[str]
) -> list[Pass]:
    """Split forwards into passes, in their order.

    Args:
        forwards: one may stand there several times.
        differentiated: what goes back.
        merge: neighbours of one network become one pass, if they learn alike.
        unsplit: networks whose BatchNorm cannot count: each forward is a pass of its own, each time.
    """
    passes: list[Pass] = []
    for forward in forwards:
        seen = any(forward in one.forwards for one in passes)
        learns = forward in differentiated.learning and not seen
        fresh = Pass((forward,), (0,), learns, forward in differentiated.twice and not seen)
        if passes and forward.network not in unsplit and _joins(passes[-1], fresh, merge):
            passes[-1] = passes[-1].with_another(forward)
        else:
            # Where it was made before, this is for BatchNorm's statistics alone.
            passes.append(fresh)
    return passes


def _joins(last: Pass, fresh: Pass, merge: bool) -> bool:
    forward = fresh.forwards[0]
    if forward in last.forwards:
        return merge or last.forwards[last.updates[-1]] == forward
    alike = (last.network, last.learns) == (fresh.network, fresh.learns)
    return merge and alike and not (last.alone or fresh.alone)


class Forwards:
    """Computes the logits of all forwards of trained networks.

    Args:
        forwards: in the order in which BatchNorm sees them; one may stand there several times.
        differentiated: what goes back.
        networks: by name; their BatchNorms become counted ones.
        number_format: what to compute in.
        options: what to merge and put on a stream.
        compiler: compiles what is not differentiated twice; None: nothing is compiled.

    Attributes:
        order: each forward once, in the order of their logits.
    """

    def __init__(
        self, forwards: Sequence[Forward], differentiated: Differentiated, networks: Mapping[str, nn.Module],
        number_format: NumberFormat, options: Options, compiler: Compiler | None,
    ) -> None:  # fmt: skip
        self.order = list(dict.fromkeys(forwards))
        self.networks = networks
        self.format = number_format
        self.device = next(networks["student"].parameters()).device
        names = dict.fromkeys(forward.network for forward in forwards)
        unsplit = [name for name in names if not split_batchnorms(networks[name])]
        self._double_backward = options.double_backward
        self.passes = group(forwards, differentiated, options.merge, unsplit)
        # Compiled as one region, peer and student share a schedule; on two streams they cannot.
        networks_passes = _by_network(self.passes) if options.streams else [self.passes]
        self._tracks = [self._track(passes, compiler) for passes in networks_passes]
        self._side = new_stream(self.device) if options.streams and len(self._tracks) > 1 else None

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return logits (B, C) for each forward, from images by their name in the table."""
        if self._side is None:
            found = [track(inputs) for track in self._tracks]
        else:
            found = self._on_two_streams(inputs, self._side)
        logits: dict[Forward, Tensor] = {}
        for track in found:
            logits = {**track, **logits}
        return [logits[forward] for forward in self.order]

    def _on_two_streams(
        self, inputs: Mapping[str, Tensor], side: torch.cuda.Stream
    ) -> list[dict[Forward, Tensor]]:
        """Run the first network's track beside the others'; what it allocates lives until they have met."""
        main = torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        for images in inputs.values():
            # The way back reads them on that stream too, when nothing here holds them any more.
            images.record_stream(side)
        with torch.cuda.stream(side):
            first = self._tracks[0](inputs)
        others = [track(inputs) for track in self._tracks[1:]]
        main.wait_stream(side)
        return [first, *others]

    def _track(
        self, passes: list[Pass], compiler: Compiler | None
    ) -> Callable[[Mapping[str, Tensor]], dict[Forward, Tensor]]:
        """Return what runs passes one after another, in regions that can be compiled or not."""
        groups = [list(region) for _, region in groupby(passes, key=lambda one: one.alone)]
        regions = [self._region(region, compiler) for region in groups]
        keys = [forward for one in passes for forward in one.forwards]

        def track(inputs: Mapping[str, Tensor]) -> dict[Forward, Tensor]:
            logits = [one for region in regions for one in region(inputs)]
            # The first of equal ones has the gradient.
            return dict(reversed(list(zip(keys, logits, strict=True))))

        return track

    def _region(self, passes: list[Pass], compiler: Compiler | None) -> Run:
        def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(logits for one in passes for logits in self._logits(one, inputs))

        if passes[0].alone:
            return cheap_double_backward()(run) if self._double_backward else run
        names = " and ".join(dict.fromkeys(one.network for one in passes))
        return run if compiler is None else compiler(run, f"training {names}")

    def _logits(self, one: Pass, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        network = self.networks[one.network]
        batches = [inputs[forward.images] for forward in one.forwards]
        set_updates(network, one.updates, counts=False)
        # Autocast keeps the weights that it has converted until it ends: were it around all passes, PyTorch
        # 2.8 would take those of a pass without a gradient for one with, whose weights would get none.
        learning = torch.set_grad_enabled(one.learns and torch.is_grad_enabled())
        with learning, self.format.autocasting(self.device):
            logits: Tensor = network(batches[0] if len(batches) == 1 else torch.cat(batches))
        count_batches(network)
        set_updates(network, (0,))
        return logits.chunk(len(batches))


def _by_network(passes: list[Pass]) -> list[list[Pass]]:
    names = dict.fromkeys(one.network for one in passes)
    return [[one for one in passes if one.network == name] for name in names]
