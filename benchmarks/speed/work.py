"""What a PeerAiD step has to do: arithmetic operations, and the bytes that no version can avoid moving.

A network is run on meta tensors, which have shapes and no numbers, and its operations are counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.steps.cases import Case
from fastpeer.models import build_model

aten = torch.ops.aten


@dataclass
class Counts:
    """What one eval-mode forward of one image does, in elements unless said otherwise.

    Attributes:
        flop: operations of convolutions and matrix products, two for each multiply-add.
        conv_in, conv_out: inputs and outputs of convolutions.
        norm: inputs of BatchNorms.
        relu: inputs of ReLUs.
        add: outputs of residual sums.
    """

    flop: int = 0
    conv_in: int = 0
    conv_out: int = 0
    norm: int = 0
    relu: int = 0
    add: int = 0


@dataclass(frozen=True)
class StepWork:
    """A step's needs for each image of the batch.

    Attributes:
        forward_flop: of one forward of the student.
        flop: of the whole step, nothing done twice.
        bytes_per_image: of the whole step in a 16-bit format, BatchNorm folded and pointwise operations
            fused into convolutions during the attack; the step's work on weights is shared by the batch.
    """

    forward_flop: float
    flop: float
    bytes_per_image: float


def step_work(case: Case, steps: int = 10) -> StepWork:
    """Count a step with `steps` steps of attack, peer and student being the same network."""
    model = build_on_meta(case)
    counts = count(model, case.size)
    weights = sum(one.numel() for one in model.parameters())
    # Attack: forward and input gradient, each as costly as a forward. Peer: in eval mode, and trained.
    # Student: trained on adversarial and on clean images. Training is three forwards' worth.
    forwards = 2 * steps + 1 + 3 + 3 + 3
    moved = steps * attack_bytes(counts) + forward_bytes(counts) + 3 * training_bytes(counts)
    return StepWork(counts.flop, forwards * counts.flop, moved + weight_bytes(weights) / case.batch)


def forward_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a folded forward: each convolution reads, adds and writes once."""
    return element * (counts.conv_in + counts.conv_out + counts.add)


def attack_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a folded forward and its input gradient, ReLU masks read from the outputs."""
    backward = 3 * counts.relu + counts.add + counts.conv_out + counts.conv_in
    return forward_bytes(counts, element) + element * backward


def training_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a train-mode forward and backward.

    BatchNorm reads its input for the statistics, then reads and writes it; backward it reads input and
    gradient twice and writes once. Each convolution reads and writes once forward and once for each of its
    two gradients. ReLU and residual sums ride along.
    """
    convolutions = 3 * (counts.conv_in + counts.conv_out)
    return element * (convolutions + 8 * counts.norm + 2 * counts.add)


def weight_bytes(weights: int) -> float:
    """Return the bytes of folding and updating two networks: float32 weights, 16-bit folded ones.

    Folding reads 4 and writes 2; SGD reads weight, gradient and momentum and writes weight and momentum.
    """
    return 2 * weights * (6 + 20)


def build_on_meta(case: Case) -> torch.nn.Module:
    """Build the case's network without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return build_model(case.model, case.classes).eval()


@torch.no_grad()
def count(model: torch.nn.Module, size: int) -> Counts:
    """Count a forward of one image (1, 3, size, size)."""
    counter = _Counter()
    with counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.counts


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that a network consists of as they pass by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self._convolution(args[0], args[1], result)
        elif packet in (aten.addmm, aten.mm):
            inputs, weights = args[-2], args[-1]
            self.counts.flop += 2 * inputs.shape[0] * weights.numel()
        elif packet in (aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_):
            self.counts.relu += args[0].numel()
        elif packet in (aten.add, aten.add_) and result.dim() == 4:
            self.counts.add += result.numel()
        elif "batch_norm" in packet.__name__:
            self.counts.norm += args[0].numel()
        return result

    def _convolution(self, images: Tensor, weight: Tensor, result: Tensor) -> None:
        # Each output sums over the weights of its own channel.
        self.counts.flop += 2 * result.numel() * weight[0].numel()
        self.counts.conv_in += images.numel()
        self.counts.conv_out += result.numel()
