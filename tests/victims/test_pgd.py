"""The attack as a whole."""

from functools import partial

import pytest
import torch
from torch import nn

from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import fgsm, label_pgd, no_attack
from fastpeer.kernels.choice import torch_kernels
from fastpeer.kernels.pgd_l2_update import pgd_l2_update
from fastpeer.kernels.pgd_update import pgd_update
from fastpeer.models import build_model
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.pgd import evaluating, pgd, uniform_start
from tests.literal import peeraid as literal_peeraid

CPU = torch.device("cpu")
CLASSES = 5
KERNELS = torch_kernels()
ATTACK = {"epsilon": 8 / 255, "step_size": 2 / 255}
L2 = {"norm": "l2", "epsilon": 0.5, "step_size": 0.1}


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [build_model("resnet8", CLASSES).double() for _ in range(2)]


def victim(network):
    return AutogradVictim(network, KERNELS)


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 8, 8, generator=random, dtype=torch.float64)
    return Batch(images, torch.randint(0, CLASSES, (4,), generator=random))


@pytest.mark.parametrize("ball", [ATTACK, L2], ids=["linf", "l2"])
def test_pgd_makes_the_images_of_the_transcription(networks, batch, ball):
    student, peer = networks
    literal = literal_peeraid.Settings(**ball)
    noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = batch.images + literal.start_std * noise
    expected = literal_peeraid.attack(student, peer, batch.images, start - batch.images, literal)
    with evaluating(student, peer), torch.no_grad():
        target = torch.softmax(peer(batch.images), 1)
        ours = pgd(victim(student), batch.images, target, start, **ball, steps=literal.steps, kernels=KERNELS)
    assert not torch.equal(ours, batch.images)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_no_steps_return_the_start(networks, batch):
    start = batch.images + 0.5
    found = pgd(victim(networks[0]), batch.images, batch.labels, start, **ATTACK, steps=0, kernels=KERNELS)
    assert torch.equal(found, start)


def test_weights_get_no_gradient(networks, batch):
    label_pgd(victim(networks[0]), KERNELS, **ATTACK, steps=2, seed=0).perturb(batch, 0)
    assert all(weight.grad is None and weight.requires_grad for weight in networks[0].parameters())


def test_evaluating_restores_each_mode_also_after_an_error():
    training, resting = nn.Dropout(), nn.Dropout().eval()

    def fail():
        with evaluating(training, resting):
            assert not training.training
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert training.training
    assert not resting.training


def test_random_starts_are_a_function_of_seed_and_counter(batch):
    draw = partial(uniform_start, batch.images, 8 / 255)
    first = draw(generator(CPU, 0, "attack", 5))
    assert torch.equal(first, draw(generator(CPU, 0, "attack", 5)))
    assert not torch.equal(first, draw(generator(CPU, 0, "attack", 6)))
    assert not torch.equal(first, draw(generator(CPU, 1, "attack", 5)))


def test_uniform_start_fills_the_ball_and_leaves_the_pixel_range():
    noise = uniform_start(torch.zeros(100, 3, 8, 8), 0.5, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= 0.5
    torch.testing.assert_close(noise.std(), torch.tensor(0.5 / 3**0.5), rtol=0.02, atol=0)


def test_fgsm_is_one_step_of_epsilon_from_the_image(networks, batch):
    network, leaf = networks[0].eval(), batch.images.clone().requires_grad_()
    nn.functional.cross_entropy(network(leaf), batch.labels).backward()
    expected, _ = pgd_update(batch.images, leaf.grad, batch.images, 0.03, 0.03)
    assert torch.equal(fgsm(victim(network), KERNELS, 0.03).perturb(batch, 0), expected)


def test_fgm_is_one_step_of_epsilon_along_the_normalised_gradient(networks, batch):
    network, leaf = networks[0].eval(), batch.images.clone().requires_grad_()
    nn.functional.cross_entropy(network(leaf), batch.labels).backward()
    expected, _ = pgd_l2_update(batch.images, leaf.grad, batch.images, 0.5, 0.5)
    found = fgsm(victim(network), KERNELS, 0.5, "l2").perturb(batch, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_uniform_start_fills_the_l2_ball():
    draw = partial(uniform_start, epsilon=0.5, norm="l2")
    norms = draw(torch.zeros(4000, 3, 1, 1), generator=generator(CPU, 0, "start", 0)).flatten(1).norm(dim=1)
    assert norms.max() <= 0.5
    # Of a ball in three dimensions, an eighth lies within half the radius.
    assert (norms < 0.25).float().mean() == pytest.approx(0.125, abs=0.02)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    first, again = (draw(images, generator=generator(CPU, 0, "start", 0)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert 0.4 < (first - images).flatten(1).norm(dim=1).min() <= 0.5


def test_label_pgd_stays_in_the_l2_ball_and_finds_more_than_one_step(networks, batch):
    attacked = victim(networks[0].eval())
    several = label_pgd(attacked, KERNELS, 0.5, 0.1, steps=10, seed=0, norm="l2").perturb(batch, 0)
    assert (several - batch.images).flatten(1).norm(dim=1).max() <= 0.5 + 1e-12
    assert 0 <= several.min() <= several.max() <= 1

    def loss(images):
        return nn.functional.cross_entropy(networks[0](images), batch.labels).item()

    assert loss(several) > loss(batch.images)


def test_images_with_logits_that_are_not_finite_are_counted_and_never_correct(batch):
    class Broken(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 5)
            logits[0, 0], logits[1, 0] = float("nan"), float("inf")
            return logits

    images, labels = batch.images, torch.zeros(len(batch.labels), dtype=torch.int64)
    found = Evaluator({"it": Broken()}, no_attack()).classify([Batch(images, labels)])["it"]
    assert found.finite.tolist() == found.correct.tolist() == [False, False] + [True] * (len(labels) - 2)


def test_predictions_are_made_in_eval_mode_for_every_image_of_every_batch(networks, batch):
    named = dict(zip(("student", "peer"), networks, strict=True))
    hits = Evaluator(named, no_attack()).correct([batch, batch])
    assert all(network.training for network in networks)
    for name, network in named.items():
        right = network.eval()(batch.images).argmax(1) == batch.labels
        assert torch.equal(hits[name], right.repeat(2))
