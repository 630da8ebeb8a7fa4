"""Students that only seem robust, built so that it is known where their loss has its hills."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config
from fastpeer.data.stream import TrainingStream
from fastpeer.training.too_good import TooGood
from tests.evaluation.streams import Held

EPSILON = 12 / 255


class Along(nn.Module):
    """Its score for class 0 is a function of how far the mean pixel has moved, in units of epsilon.

    Images that begin at 0.5 are moved from there; those that begin at 0.2 keep a score of 1.
    """

    def __init__(self, score):
        super().__init__()
        self.score, self.unused = score, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        moved = torch.where(mean > 0.4, self.score((mean - 0.5) / EPSILON), 1 - 0.1 * (mean - 0.2))
        return torch.stack([moved, torch.zeros_like(moved)], 1)


def overfitted(distance):
    """Right at the image and a whole step away, wrong between: so Wong et al. (2020) find it."""
    return torch.cos(2 * math.pi * distance)


def misleading(distance):
    """Wrong a whole step away, but a hill of the score keeps small steps from there."""
    return 0.6 + 0.5 * torch.cos(2 * math.pi * distance / 0.6) - 8 * torch.relu(distance - 0.9)


def robust(distance):
    return 1 - 0.5 * distance.abs()


def too_good(score, steps=1, fragile=1.0, warnings=()):
    images = torch.full((80, 3, 8, 8), 0.2)
    images[: round(fragile * 80)] = 0.5 + 0.06 * EPSILON
    images = images[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    source = Held(images, torch.zeros(80, dtype=torch.int64), 16)
    training = TrainingStream(source, torch.arange(80).numpy(), torch.float32, 0, False, False, False)
    evaluation = SimpleNamespace(
        sample=lambda count: [next(source.batches(range(count), None, torch.float32))]
    )
    setup = SimpleNamespace(
        networks={"student": Along(score)}, selection=evaluation, training=training, classes=2,
        warnings={"student": list(warnings)},
    )  # fmt: skip
    config = Config(method="pgd-at", attack=AttackConfig(epsilon=EPSILON, step_size=15 / 255, steps=steps))
    return TooGood(config, setup), config.table


@pytest.mark.parametrize(
    ("score", "fragile", "told"),
    [
        (overfitted, 1, "catastrophic overfitting: right on 98 % under the training attack, on 0 % of 64"),
        (misleading, 1, "its gradients mislead attacks"),
        (overfitted, 0.3, ""),
        (robust, 1, ""),
    ],
)
def test_students_that_only_seem_robust_are_named(logged, score, fragile, told):
    watch, table = too_good(score, fragile=fragile)
    found = watch.record(table, {"student_adversarial": 98.0}, {"clean": 99.0, "pgd10": 90.0})
    assert len(found.get("warnings", [])) == len(logged) == bool(told)
    assert told in "".join(found.get("warnings", []))
    # Told once, recorded each time.
    assert watch.record(table, {"student_adversarial": 98.0}, {"clean": 99.0, "pgd10": 90.0}) == found
    assert len(logged) == bool(told)


@pytest.mark.parametrize(
    ("steps", "accuracy", "pgd", "looks"),
    [
        (10, 98.0, 30.0, True),
        (10, 98.0, 60.0, False),
        (1, 98.0, 60.0, True),
        (1, 30.0, 5.0, False),
        (0, 98.0, 0.0, False),
    ],
)
def test_training_images_are_attacked_only_where_there_is_reason_to(steps, accuracy, pgd, looks):
    watch, table = too_good(overfitted, steps=steps)
    found = watch.record(table, {"student_adversarial": accuracy}, {"clean": 99.0, "pgd10": pgd})
    assert bool(found) == looks


def test_natural_training_withstands_nothing_and_says_so_already(logged):
    watch, _ = too_good(overfitted)
    assert watch.record(Config(method="natural").table, {"student_clean": 99.0}, {"clean": 99.0}) == {}
    assert logged == []


def test_a_gradient_that_vanishes_during_the_training_is_named_once(logged):
    watch, table = too_good(lambda distance: (40 * distance.abs()).round() / 40 + 1, fragile=0.5)
    for _ in range(2):
        found = watch.record(table, {"student_adversarial": 30.0}, {"clean": 99.0, "pgd10": 90.0})
        assert "the gradient is zero at" in found["warnings"][0]
    assert len(logged) == 1
