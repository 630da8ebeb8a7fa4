"""Teachers for measurements: the student's architecture with random weights, frozen."""

import torch
from torch import nn

from benchmarks.steps.cases import Case, random_batches
from fastpeer.models import build_model
from fastpeer.step.split_batchnorm import batchnorms, momenta_restored

SEEDS = {"teacher": 100, "natural_teacher": 101}
"""Of their weights."""


def random_teachers(case: Case, device: torch.device) -> dict[str, nn.Module]:
    """Build a method's frozen networks: in float32, NCHW and eval mode; their weights want no gradient."""
    config = case.config("fp32")
    images = random_batches(case, device, torch.contiguous_format, count=1)[0].images
    teachers = {}
    for role in config.table.frozen:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEEDS[role])
            network = build_model(config.model.student, case.classes, case.sides).to(device)
        _see(network, images)
        teachers[role] = network.eval().requires_grad_(False)
    return teachers


@torch.no_grad()
def _see(network: nn.Module, images: torch.Tensor) -> None:
    """Make BatchNorm's statistics those of a batch, so that values keep their size through the layers."""
    norms = batchnorms(network)
    with momenta_restored(norms):
        for norm in norms:
            norm.momentum = 1.0
        network.train()(images)
