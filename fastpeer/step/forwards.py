"""The train-mode forwards of a method's table: which form one batch, one compiled region, one stream."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from fastpeer.device import new_stream
from fastpeer.methods.table import Forward
from fastpeer.step.compile import Compiler
from fastpeer.step.double_backward import cheap_double_backward
from fastpeer.step.fused_norms import NormsFused
from fastpeer.step.options import Options
from fastpeer.step.precision import NumberFormat
from fastpeer.step.split_batchnorm import count_batches, set_updates, split_batchnorms

Region = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
"""Maps images by name to the logits of some passes; may be compiled."""


@dataclass(frozen=True)
class Pass:
    """One run of a network, on the images of one or more forwards.

    Attributes:
        forwards: their images are the equal parts of its batch.
        updates: numbers of the parts in the order in which they move BatchNorm's running statistics.
        learns: whether a gradient flows back through it.
        differentiated_twice: whether its gradient is differentiated again, which torch.compile cannot do. It
            is then neither merged with other forwards nor compiled.
    """

    forwards: tuple[Forward, ...]
    updates: tuple[int, ...]
    learns: bool
    differentiated_twice: bool = False

    @property
    def network(self) -> str:
        """Name of the network that runs."""
        return self.forwards[0].network

    def with_forward(self, forward: Forward) -> "Pass":
        """Return the pass with one more forward, or with one more BatchNorm update for one it has already."""
        forwards = self.forwards if forward in self.forwards else (*self.forwards, forward)
        return Pass(
            forwards, (*self.updates, forwards.index(forward)), self.learns, self.differentiated_twice
        )


@dataclass(frozen=True)
class Differentiated:
    """Which forwards are differentiated.

    Attributes:
        learning: those that a gradient flows back through.
        twice: those of them whose gradient at the images is differentiated again.
    """

    learning: Collection[Forward]
    twice: Collection[Forward] = ()


def group_into_passes(
    forwards: Sequence[Forward], differentiated: Differentiated, merge: bool, unsplit: Collection[str]
) -> list[Pass]:
    """Group forwards into passes, in their order.

    Args:
        forwards: in the order in which BatchNorm sees them; a forward may be listed several times. Its
            gradient comes from the first time.
        differentiated: which of them are differentiated.
        merge: whether neighbours of one network become one pass, provided that all learn or none does.
        unsplit: networks without split BatchNorm: each forward is a pass of its own, each time it is listed.
    """
    passes: list[Pass] = []
    for forward in forwards:
        repeated = any(forward in earlier.forwards for earlier in passes)
        learns = forward in differentiated.learning and not repeated
        twice = forward in differentiated.twice and not repeated
        candidate = Pass((forward,), (0,), learns, twice)
        if passes and forward.network not in unsplit and _can_join(passes[-1], candidate, merge):
            passes[-1] = passes[-1].with_forward(forward)
        else:
            # A repeated forward that cannot join runs again, for BatchNorm's statistics only.
            passes.append(candidate)
    return passes


def _can_join(last: Pass, candidate: Pass, merge: bool) -> bool:
    forward = candidate.forwards[0]
    if forward in last.forwards:
        # Its logits exist already. Unmerged, only the forward that comes directly before may be repeated.
        return merge or last.forwards[last.updates[-1]] == forward
    alike = (last.network, last.learns) == (candidate.network, candidate.learns)
    return merge and alike and not (last.differentiated_twice or candidate.differentiated_twice)


class Forwards:
    """Computes the logits of all forwards of trained networks.

    Args:
        forwards: in the order in which BatchNorm sees them; a forward may be listed several times.
        differentiated: which of them are differentiated.
        networks: by name; their BatchNorm layers become split ones, in place.
        number_format: dtypes to compute in.
        options: whether to merge forwards, to use a second stream and a cheaper second derivative.
        compiler: compiles what is not differentiated twice; None: nothing is compiled. Kernels for BatchNorm
            take its place.

    Attributes:
        order: each forward once, in the order of the logits that `run` returns.
        unsplit: names of the networks whose BatchNorms cannot be split, so that no forwards of theirs merge.
        fused: by name, the networks that run with kernels for BatchNorm, ReLU with it.
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
        self.unsplit = [name for name in names if not split_batchnorms(networks[name])]
        self._double_backward = options.double_backward
        self.passes = group_into_passes(forwards, differentiated, options.merge, self.unsplit)
        self._batch_norm = options.batch_norm()
        named = {each.network for each in self.passes if not each.differentiated_twice}
        fusing = sorted(named) if self._batch_norm is not None else []
        self.fused = {name: NormsFused(networks[name]) for name in fusing}
        # A track is what runs on one stream. Without a second stream, peer and student are one track, so that
        # they are compiled as one region, in which Inductor may fuse and order their kernels freely.
        tracks = _by_network(self.passes) if options.streams else [self.passes]
        self._tracks = [self._track(passes, compiler) for passes in tracks]
        self._side = new_stream(self.device) if options.streams and len(self._tracks) > 1 else None

    @property
    def merges(self) -> bool:
        """Whether any pass stands for several forwards."""
        return any(len(each.updates) > 1 for each in self.passes)

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits (B, C) of each forward in `order`, from images (B, 3, H, W) by name."""
        if self._side is None:
            by_track = [track(inputs) for track in self._tracks]
        else:
            by_track = self._on_two_streams(inputs, self._side)
        logits: dict[Forward, Tensor] = {}
        for of_track in by_track:
            logits = {**of_track, **logits}
        return [logits[forward] for forward in self.order]

    def _on_two_streams(
        self, inputs: Mapping[str, Tensor], side: torch.cuda.Stream
    ) -> list[dict[Forward, Tensor]]:
        """Run the first network's track on a side stream, the others on the current one; join the streams."""
        main = torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        for images in inputs.values():
            # The allocator knows of the main stream only: without this, it could reuse the images' memory
            # while the first network's backward, which runs on the side stream, still reads them.
            images.record_stream(side)
        with torch.cuda.stream(side):
            first = self._tracks[0](inputs)
        others = [track(inputs) for track in self._tracks[1:]]
        main.wait_stream(side)
        return [first, *others]

    def _track(
        self, passes: list[Pass], compiler: Compiler | None
    ) -> Callable[[Mapping[str, Tensor]], dict[Forward, Tensor]]:
        """Return a function that runs passes one after another, compiled region by region."""
        groups = [list(region) for _, region in groupby(passes, key=lambda each: each.differentiated_twice)]
        regions = [self._region(region, compiler) for region in groups]
        forwards = [forward for each in passes for forward in each.forwards]

        def track(inputs: Mapping[str, Tensor]) -> dict[Forward, Tensor]:
            logits = [tensor for region in regions for tensor in region(inputs)]
            # Reversed, so that of a repeated forward the first logits stay: they have the gradient.
            return dict(reversed(list(zip(forwards, logits, strict=True))))

        return track

    def _region(self, passes: list[Pass], compiler: Compiler | None) -> Region:
        def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(logits for each in passes for logits in self._run_pass(each, inputs))

        if passes[0].differentiated_twice:
            return cheap_double_backward()(run) if self._double_backward else run
        names = " and ".join(dict.fromkeys(each.network for each in passes))
        if compiler is None or self._batch_norm is not None:
            return run
        return compiler(run, f"training {names}")

    def _run_pass(self, run: Pass, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the logits (B, C) of each of a pass's forwards."""
        network = self.networks[run.network]
        # The kernels' gradient cannot be differentiated again.
        kernels = None if run.differentiated_twice else self._batch_norm
        called = network if kernels is None else self.fused[run.network]
        batches = [inputs[forward.images] for forward in run.forwards]
        set_updates(network, run.updates, counts=False, kernels=kernels)
        # An autocast context caches converted weights until it ends. Were there one around all passes,
        # PyTorch 2.8 would reuse those converted in a pass without gradients in a pass with them, and the
        # weights would get no gradient.
        learning = torch.set_grad_enabled(run.learns and torch.is_grad_enabled())
        with learning, self.format.autocasting(self.device):
            logits: Tensor = called(batches[0] if len(batches) == 1 else torch.cat(batches))
        count_batches(network)
        # Others who run the network, such as an attack in train mode, expect plain BatchNorm.
        set_updates(network, (0,))
        return logits.chunk(len(batches))


def _by_network(passes: list[Pass]) -> list[list[Pass]]:
    names = dict.fromkeys(each.network for each in passes)
    return [[each for each in passes if each.network == name] for name in names]
