"""The loss: PeerAiD's published settings, many forwards, and the largest table and tile that are allowed."""

import torch

from fastpeer.kernels.fused.distill_loss import MAX_BATCH, MAX_CLASSES, MAX_FORWARDS, distill_loss
from fastpeer.kernels.terms import Divergence
from tests.kernels.tables import EVERYTHING, PEERAID, SIX_FORWARDS, random_batch

PAIRS = tuple(Divergence(one, MAX_FORWARDS - 1 - one, 1.0, 2.0, "mean", True) for one in range(MAX_FORWARDS))


def launch(classes, terms, dtype, batch=128, forwards=3, scale=1.0):
    case = random_batch(0, batch, classes, forwards=forwards).to(dtype)
    return lambda: distill_loss(case.logits, case.labels, terms, scale, case.sample_weights)


CASES = {
    "cifar10-float32": launch(*PEERAID["cifar10"], torch.float32),
    "cifar100-bfloat16": launch(*PEERAID["cifar100"], torch.bfloat16),
    "tiny-float16-scaled": launch(*PEERAID["tiny"], torch.float16, scale=torch.ones(())),
    **{
        f"six-forwards-{classes}-{dtype}".replace("torch.", ""): launch(
            classes, SIX_FORWARDS, dtype, forwards=6
        )
        for classes in (10, 100, 200)
        for dtype in (torch.float32, torch.bfloat16)
    },
    "everything": launch(1000, EVERYTHING, torch.float32, batch=MAX_BATCH),
    "largest": launch(MAX_CLASSES, PAIRS, torch.bfloat16, forwards=MAX_FORWARDS),
}
