"""AutoAttack with the standard's constants, on networks small enough to attack in seconds."""

import pytest
import torch
from torch import nn

from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.evaluation import autoattack
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack import ATTACKS, build_autoattack, check_constants, target_count
from fastpeer.models import build_model
from fastpeer.step.options import Options

EPSILON = 8 / 255
CPU = torch.device("cpu")


def network(classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, classes)).eval()


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (9, 8), (10, 9), (200, 9)])
def test_targeted_attacks_aim_at_nine_classes_or_all_wrong_ones(classes, targets):
    attack = build_autoattack(network(classes), EPSILON, classes, 0, CPU)
    assert target_count(classes) == targets
    assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == targets


@pytest.mark.parametrize(
    ("part", "constant", "value"),
    [
        ("apgd", "n_iter", 99),
        ("apgd", "eps", 0.1),
        ("apgd", "thr_decr", 0.5),
        ("apgd_targeted", "eot_iter", 20),
        ("apgd_targeted", "n_target_classes", 3),
        ("fab", "n_restarts", 5),
        ("fab", "norm", "L2"),
        ("square", "n_queries", 1000),
        ("square", "p_init", 0.3),
    ],
)
def test_any_other_constant_than_the_standards_is_refused(part, constant, value):
    attack = build_autoattack(network(10), EPSILON, 10, 0, CPU)
    setattr(getattr(attack, part), constant, value)
    with pytest.raises(UserError, match=r"is not AutoAttack standard: its .* must be") as refusal:
        check_constants(attack, EPSILON, 10)
    assert "\n" not in str(refusal.value)


def test_l2_is_the_standard_version_too_and_no_other_norm():
    attack = build_autoattack(network(10), 0.5, 10, 0, CPU, "l2")
    parts = (attack, attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    assert {part.norm for part in parts} == {"L2"}
    check_constants(attack, 0.5, 10, "l2")
    with pytest.raises(UserError, match=r"its norms must be \{'Linf'\}"):
        check_constants(attack, 0.5, 10)


@pytest.mark.parametrize("attacks", [["apgd-ce"], ["apgd-ce", "apgd-dlr", "fab-t", "square"]])
def test_another_choice_of_attacks_is_refused(attacks):
    attack = build_autoattack(network(10), EPSILON, 10, 0, CPU)
    attack.attacks_to_run = attacks
    with pytest.raises(UserError, match="its attacks must be"):
        check_constants(attack, EPSILON, 10)


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_refused(classes):
    with pytest.raises(UserError, match=f"needs at least 4 classes, got {classes}"):
        build_autoattack(network(classes), EPSILON, classes, 0, CPU)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.003), ("l2", 0.03)])
def test_images_misclassified_clean_or_under_pgd_are_so_under_autoattack(norm, epsilon, monkeypatch):
    if norm == "l2":
        # Of the four attacks square takes the longest, by far.
        monkeypatch.setattr(autoattack, "SQUARE_QUERIES", 200)
    classifier = network(5)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = classifier(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    settings = AttackSettings(
        epsilon, epsilon / 3, classes=5, seed=0, batch_size=2, options=evaluation_options(CPU), norm=norm
    )
    batches = [Batch(images[:3], labels[:3]), Batch(images[3:], labels[3:])]
    correct, done, stages = {}, [], []

    def progress(images, stage=""):
        (stages if stage else done).append((images, stage) if stage else images)

    for name in ("clean", "pgd20", "aa"):
        correct[name] = classify_under_attack(name, classifier, batches, settings, progress).correct
    assert done == [3, 4] * 3
    assert [stage for stage in dict.fromkeys(stages) if stage[0] == 0] == [(0, name) for name in ATTACKS]
    assert {images for images, _ in stages} == {0, 3}
    assert correct["clean"].tolist() == [False, True, True, True]
    assert 0 < correct["aa"].sum() < 3
    assert not (correct["aa"] & ~correct["clean"]).any()
    assert not (correct["aa"] & ~correct["pgd20"]).any()


@pytest.mark.parametrize(
    ("model", "norm", "epsilon"),
    [("resnet8", "linf", 0.3), ("wideresnet10x1", "linf", 0.3), ("resnet8", "l2", 2.0)],
)
def test_convolutional_network_is_attacked_on_channels_last_images(model, norm, epsilon):
    torch.manual_seed(0)
    convolutional = build_model(model, 10).eval().to(memory_format=torch.channels_last)
    images = torch.rand(3, 3, 8, 8).to(memory_format=torch.channels_last)
    labels = convolutional(images).argmax(1)
    settings = AttackSettings(
        epsilon=epsilon, step_size=2 / 255, classes=10, seed=0, batch_size=2, options=Options(), norm=norm
    )
    batch = Batch(images, labels)
    found = classify_under_attack("aa", convolutional, [batch], settings, lambda done, stage="": None)
    assert found.correct.shape == found.finite.shape == (3,)
    assert found.finite.all()
