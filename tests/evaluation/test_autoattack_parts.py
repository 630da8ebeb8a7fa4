"""AutoAttack's attacks, each alone: image by image what pyautoattack says of it."""

import pytest
import torch
from pyautoattack import AutoAttack

from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attack_names import autoattacks_of
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork, Passes
from fastpeer.evaluation.autoattack_parts.official import official_attack
from fastpeer.evaluation.autoattack_parts.own import own_attack
from fastpeer.evaluation.autoattack_parts.standard import ATTACKS
from fastpeer.models import build_model
from tests.evaluation.nets import digits, trained
from tests.evaluation.streams import stream_of

EPSILON = {"apgd-ce": 0.06, "apgd-t": 0.06, "fab-t": 0.06, "square": 0.08}
IMAGES = 9
"""In batches of 8."""


def official(network, attack, classes, iterations, queries):
    """The official package with one attack, by its constants for the standard version."""
    found = AutoAttack(network, norm="Linf", eps=EPSILON[attack], version="custom", attacks=[attack], seed=3)
    found.apgd.n_restarts = found.apgd_targeted.n_restarts = found.fab.n_restarts = 1
    found.apgd.n_iter = found.apgd_targeted.n_iter = found.fab.n_iter = iterations
    found.apgd_targeted.n_target_classes = found.fab.n_target_classes = min(9, classes - 1)
    found.square.n_queries = queries
    return found


def assert_as_official(attack, classes, iterations=100, queries=5000):
    network, (images, labels) = trained(classes), digits(classes, 1000, IMAGES)
    _, predicted = official(network, attack, classes, iterations, queries).run_standard_evaluation(
        images, labels, batch_size=8
    )
    options = evaluation_options(torch.device("cpu"))
    settings = AttackSettings(EPSILON[attack], 0.01, classes, 3, 8, options)
    found = classify_under_attack(attack, network, stream_of(images, labels), settings, lambda *_: None)
    assert found.correct.tolist() == (predicted == labels).tolist()
    assert 0 < found.correct.sum() < (network(images).argmax(1) == labels).sum()
    assert list(found.broken) == ["clean", attack]
    assert sum(found.broken.values()) == IMAGES - found.correct.sum()
    assert found.reasons == ()


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_image_has_the_verdict_of_pyautoattack_s_attack(attack, monkeypatch):
    monkeypatch.setattr(standard, "ITERATIONS", 5)
    monkeypatch.setattr(standard, "SQUARE_QUERIES", 100)
    assert_as_official(attack, 10, 5, 100)


@pytest.mark.soak
@pytest.mark.parametrize("classes", [9, 10, 200])
@pytest.mark.parametrize("attack", ATTACKS)
def test_so_it_is_with_the_standard_s_iterations(attack, classes):
    assert_as_official(attack, classes)


def test_with_three_classes_all_but_the_targeted_dlr_attack_run():
    for attack in ("apgd-ce", "fab-t", "square"):
        assert autoattacks_of(attack, 3) == (attack,)
    for name in ("apgd-t", "aa"):
        with pytest.raises(UserError, match="at least 4 classes, got 3"):
            autoattacks_of(name, 3)


def test_square_computes_in_part_and_has_the_verdict_of_pyautoattack_s(monkeypatch):
    monkeypatch.setattr(standard, "SQUARE_QUERIES", 150)
    torch.manual_seed(0)
    network, device = build_model("wideresnet10x1", 10).eval().requires_grad_(False), torch.device("cpu")
    images = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        # Otherwise all images are of one class, far from the others.
        network.fc.bias -= network(images).mean(0)
        labels = network(images).argmax(1)
        settings = AttackSettings(0.02, 0.01, 10, 3, 8, evaluation_options(device))
        attacked = AttackedNetwork(network, settings.options, device, Passes())
        assert attacked.windowed(images, 5) is not None
        found = own_attack("square", attacked, settings)(images, labels).fallen
        expected = official_attack("square", network, settings, device, Passes())(images, labels).fallen
    assert found.tolist() == expected.tolist()
    assert 0 < found.sum() < 8
