"""Networks whose gradients mislead attacks (Athalye et al. 2018): their measured robustness is none."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.data.stream import EvaluationStream
from fastpeer.models.probing import undisturbed

CHECKED_IMAGES = 16
MANY = 0.1
"""Share of images with a gradient of zero from which on it is no accident."""
SAME = 1e-4
"""Difference of two calls' logits, relative to the largest, that may be rounding."""
SQUARE_GAIN = 0.002
"""Share of the images that Square may find after AutoAttack's other attacks (pyautoattack's own limit)."""

RANDOM = (
    "its outputs differ between two calls on the same images: attacks climb noise, accuracies may be too high"
)
TOGETHER = (
    "its outputs for an image depend on the other images of the batch: accuracies depend on --batch-size, and"
    " attacks on one image move the others"
)
PROBABILITIES = "its outputs are probabilities: attacks expect logits, what its softmax is applied to"
ZERO = "(its forward rounds or cuts off gradients, or its softmax is saturated): accuracies may be too high"
ZERO_IN_AUTOATTACK = f"AutoAttack met images whose gradient is zero {ZERO}"
SQUARE = (
    "Square, which uses no gradient, found adversarial images that AutoAttack's other attacks missed: its"
    " gradient misleads them"
)
UNDEFINED = "attacks by gradient cannot move such images, and none of them counts as withstanding PGD"
DYNAMIC = "it runs autograd in its forward, which AutoAttack does not see through: accuracies may be too high"


def hidden_gradients(network: nn.Module, stream: EvaluationStream) -> list[str]:
    """Return why attacks that follow a network's gradient may fail, a line for each reason; mostly none.

    Looks at up to 16 images, evenly spread, in eval mode. Draws no number from PyTorch's generators, and
    leaves the network's statistics and modes as they are.

    Args:
        network: in the dtype of the stream's images, on their device.
        stream: images.
    """
    batches = list(stream.sample(CHECKED_IMAGES))
    images, labels = (torch.cat([getattr(batch, part) for batch in batches]) for part in ("images", "labels"))
    return _reasons(network, images, labels)


def _reasons(network: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad(), undisturbed(network, images.device), _in_full_precision():
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        first, second = (torch.func.functional_call(network, buffers, leaf) for _ in range(2))
        halves = [torch.func.functional_call(network, buffers, half) for half in leaf.detach().chunk(2)]
        gradient = _gradient(first, leaf, labels)
    first, second = first.detach(), second.detach()
    if not (first.isfinite().all() and second.isfinite().all()):
        return []  # Counted and reported by whoever classifies.
    zeros = int((gradient.flatten(1) == 0).all(1).sum())
    unknown = int(gradient.isnan().flatten(1).any(1).sum())
    # A network that ignores its images, such as one with a classifier of zeros, hides nothing yet.
    learnt = not torch.equal(first, first[:1].expand_as(first))
    tolerance = SAME * first.abs().max()
    random = (first - second).abs().max() > tolerance
    found = {
        RANDOM: random,
        # Of most images: rounding inside a network may magnify what other sums differ by.
        TOGETHER: not random
        and ((first - torch.cat(halves).detach()).abs().amax(1) > tolerance).float().mean() > 0.5,
        PROBABILITIES: first.min() >= 0 and ((first.sum(1) - 1).abs() < 1e-3).all(),
        f"the gradient is NaN at {unknown} of {len(images)} images: {UNDEFINED}": unknown,
        f"the gradient is zero at {zeros} of {len(images)} images {ZERO}": learnt
        and zeros > MANY * len(images),
    }
    return [reason for reason, holds in found.items() if holds]


@contextmanager
def _in_full_precision() -> Iterator[None]:
    """Let CUDA round float32 products neither to TF32 nor by other algorithms for each size of a batch.

    cuDNN's search may choose TF32 for one size and not for another, which differ by more than `SAME`.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def _gradient(logits: Tensor, leaf: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy's gradient at the images (B, 3, H, W); zeros where it is cut off."""
    if not logits.requires_grad:
        return torch.zeros_like(leaf)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    entropy = F.cross_entropy(wide, labels, reduction="sum")
    return torch.autograd.grad(entropy, leaf, materialize_grads=True)[0]


def autoattack_logger() -> logging.Logger:
    """Return pyautoattack's own logger."""
    return logging.getLogger("auto-attack")


@contextmanager
def autoattack_messages() -> Iterator[list[str]]:
    """Collect what pyautoattack logs as warnings meanwhile, in its own words; nothing of it is printed."""
    logger, collector = autoattack_logger(), _Collector(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate


class _Collector(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def autoattack_reasons(messages: Sequence[str]) -> list[str]:
    """Return what pyautoattack's messages on a network mean, each once; its own name flags of its own."""
    known = {
        "randomized defense": RANDOM, "probability distribution": PROBABILITIES,
        "zero gradient": ZERO_IN_AUTOATTACK, "dynamic defense": DYNAMIC,
    }  # fmt: skip
    reasons = []
    for message in messages:
        own = re.sub(r" See \S+ for details\.", "", message)
        reasons.append(next((reason for words, reason in known.items() if words in message), own))
    return list(dict.fromkeys(reasons))
