"""The attacks on labels, against literal ones, image by image; and what restarts and repeated iterates do."""

from functools import partial

import pytest
import torch
from torch import nn

from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.evaluation.accuracy import (
    Evaluator,
    _classify_with_restarts,
    classify_under_attack,
    evaluation_options,
)
from fastpeer.evaluation.attacks import (
    CHUNK,
    AttackSettings,
    LabelAttack,
    MarginVictim,
    _until_repeated,
    label_pgd,
    margin_gradient,
)
from fastpeer.kernels.choice import torch_kernels
from fastpeer.victims.autograd import AutogradVictim
from tests.evaluation.nets import digits, trained
from tests.evaluation.streams import stream_of

CPU = torch.device("cpu")
EPSILON, STEP = 0.1, 0.03
IMAGES = 41
"""In batches of 8, the last of which is a single image."""


def told(done, stage=""):
    pass


def settings(classes, norm="linf"):
    return AttackSettings(EPSILON, STEP, classes, 0, 8, evaluation_options(CPU), norm)


def unseen(classes, dtype=torch.float32):
    images, labels = digits(classes, 1000, IMAGES)
    return images.to(dtype), labels


def cross_entropy(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def margin(logits, labels):
    """As released evaluations have it: the largest logit of the others less the own one."""
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return ((1 - own) * logits - own * 1e4).max(1).values.sum() - (own * logits).sum()


def literal_pgd(network, images, labels, start, step_size, epsilon, steps, loss=cross_entropy):
    """Madry et al.'s, written down with autograd."""
    adversarial = start
    for _ in range(steps):
        leaf = adversarial.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(leaf), labels), leaf)
        adversarial = leaf.detach() + step_size * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, images - epsilon), images + epsilon).clamp(0, 1)
    return adversarial


def starts(images):
    """The uniform starts of an evaluation with seed 0, batch by batch."""
    noises = [
        torch.rand(part.shape, generator=generator(CPU, 0, "evaluation start", number), dtype=part.dtype)
        for number, part in enumerate(images.split(8))
    ]
    return images + EPSILON * (2 * torch.cat(noises) - 1)


ATTACKS = {
    # Step size, epsilon, steps, loss.
    "fgsm": (EPSILON, EPSILON, 1),
    "pgd10": (STEP, EPSILON, 10),
    "cw": (STEP, EPSILON, 30, margin),
    "unbounded20": (STEP, 1.0, 20),
}


@pytest.mark.parametrize(
    ("classes", "name"),
    [*((10, name) for name in ATTACKS), (9, "fgsm"), (9, "pgd10"), (200, "pgd10"), (200, "cw")],
)
def test_each_image_has_the_verdict_of_the_literal_attack(classes, name):
    network, (images, labels) = trained(classes), unseen(classes)
    start = images if name == "fgsm" else starts(images)
    adversarial = literal_pgd(network, images, labels, start, *ATTACKS[name])
    expected = network(adversarial).argmax(1) == labels
    found = classify_under_attack(name, network, stream_of(images, labels), settings(classes), told)
    assert found.correct.tolist() == expected.tolist()
    assert 0 <= expected.sum() < IMAGES - 5


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_pgd_makes_the_literal_images_in_float64(loss):
    network, (images, labels) = trained(10, torch.float64), unseen(10, torch.float64)
    victim = AutogradVictim(network, torch_kernels())
    attacked = MarginVictim(victim) if loss is margin else victim
    attack = label_pgd(attacked, torch_kernels(), EPSILON, STEP, 30, 0)
    found = [
        attack.perturb(Batch(*pair), number)
        for number, pair in enumerate(zip(images.split(8), labels.split(8), strict=True))
    ]
    expected = literal_pgd(network, images, labels, starts(images), STEP, EPSILON, 30, loss)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-12)


def test_the_margin_s_gradient_is_autograd_s():
    logits = torch.randn(
        6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    labels = torch.tensor([0, 8, 3, 3, 1, 2])
    (expected,) = torch.autograd.grad(4 * margin(logits, labels), logits)
    assert torch.equal(margin_gradient(logits.detach(), labels, 4.0), expected)


class Counting(AutogradVictim):
    """Counts the gradients that it is asked for."""

    gradients = 0

    def input_gradient(self, images, target):
        self.gradients += 1
        return super().input_gradient(images, target)


@pytest.mark.parametrize("steps", [50, 131])
def test_iterates_that_repeat_end_a_long_attack_with_the_same_images(steps):
    network, (images, labels) = trained(10), unseen(10)
    brief, whole = (Counting(network, torch_kernels()) for _ in range(2))
    attack = partial(label_pgd, kernels=torch_kernels(), epsilon=EPSILON, step_size=STEP, steps=steps, seed=0)
    for number, first in enumerate((0, 8, 40)):
        batch = Batch(images[first : first + 8], labels[first : first + 8])
        found = attack(brief, record=lambda function: function).perturb(batch, number)
        assert torch.equal(found, attack(whole).perturb(batch, number))
    assert whole.gradients == 3 * steps
    assert brief.gradients < 3 * steps


@pytest.mark.soak
@pytest.mark.parametrize("batch_size", [32, 256])
def test_most_of_a_thousand_steps_are_saved(batch_size):
    network, (images, labels) = trained(10), digits(10, 1000, 256)
    brief, whole = (Counting(network, torch_kernels()) for _ in range(2))
    attack = partial(label_pgd, kernels=torch_kernels(), epsilon=EPSILON, step_size=STEP, steps=1000, seed=0)
    for number, first in enumerate(range(0, 256, batch_size)):
        batch = Batch(images[first : first + batch_size], labels[first : first + batch_size])
        found = attack(brief, record=lambda function: function).perturb(batch, number)
        assert torch.equal(found, attack(whole).perturb(batch, number))
    assert brief.gradients < whole.gradients / 2


def test_where_nothing_repeats_all_steps_are_made():
    counted = []

    def climb(images, labels, first, steps):
        counted.append(steps)
        return first + steps

    ascend = _until_repeated(climb, 5 * CHUNK + 3, lambda function: function)
    zero = torch.zeros(2, 3, 1, 1)
    assert torch.equal(ascend(zero, torch.zeros(2), zero), zero + 5 * CHUNK + 3)
    assert counted == [3, *[CHUNK] * 5]


def test_an_iterate_of_any_phase_is_the_last_one():
    """Images that go round with periods of 1, 2, 3 and 4 steps, and so together with one of 12."""
    periods = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)

    def climb(images, labels, first, steps):
        for _ in range(steps):
            first = torch.where(first < 100, first + 25, 100 + (first - 99) % periods)
        return first

    zero = torch.zeros(4, 1, 1, 1)
    for steps in range(50, 80):
        ascend = _until_repeated(climb, steps, lambda function: function)
        assert torch.equal(ascend(zero, zero, zero), climb(zero, zero, zero, steps))


class Marked:
    """An attack that succeeds at one restart with each image: at that of its number modulo 4, if any."""

    def __init__(self):
        self.attacked = []

    def start(self, batch, number, restart=0):
        self.attacked.append((restart, batch.images.flatten().int().tolist()))
        return torch.full_like(batch.images, restart)

    def ascend(self, images, labels, first):
        return torch.where(images % 4 == first, 1.0, 0.0)


class Reading(nn.Module):
    """Is wrong where it reads a 1."""

    def forward(self, images):
        return torch.stack([1 - images.flatten(), images.flatten()], 1)


def test_an_image_is_broken_if_any_restart_breaks_it_and_attacked_until_then():
    images = torch.arange(10.0).view(10, 1, 1, 1)
    stream, done = stream_of(images, torch.zeros(10, dtype=torch.int64), 4), []
    marked = Marked()
    evaluator = Evaluator({"network": Reading()}, LabelAttack(marked.start, marked.ascend))
    found = _classify_with_restarts(evaluator, stream, 3, lambda *progress: done.append(progress))
    assert found.correct.tolist() == [number % 4 == 3 for number in range(10)]
    assert found.finite.all()
    assert marked.attacked == [
        (0, [0, 1, 2, 3]), (0, [4, 5, 6, 7]), (0, [8, 9]),
        (1, [1, 2, 3, 5]), (1, [6, 7, 9]), (2, [2, 3, 6, 7]),
    ]  # fmt: skip
    assert done[-3:] == [(7, "start 2 of 3"), (10, "start 2 of 3"), (10, "start 3 of 3")]


def test_restarts_begin_elsewhere_and_break_no_less():
    network, (images, labels) = trained(10), unseen(10)
    stream = stream_of(images, labels)
    once, thrice = (
        classify_under_attack(name, network, stream, settings(10), told).correct
        for name in ("pgd3", "pgd3x3")
    )
    assert not (thrice & ~once).any()
    attack = label_pgd(AutogradVictim(network, torch_kernels()), torch_kernels(), EPSILON, STEP, 3, 0)
    batch = Batch(images, labels)
    starts_of = [attack.start(batch, 0, restart) for restart in (0, 0, 1, 2)]
    assert torch.equal(starts_of[0], starts_of[1])
    assert not any(torch.equal(starts_of[0], other) for other in starts_of[2:])
