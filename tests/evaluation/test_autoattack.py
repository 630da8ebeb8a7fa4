"""AutoAttack with the standard's constants, on networks small enough to attack in seconds."""

import re
from itertools import count

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from fastpeer.errors import UserError
from fastpeer.evaluation import autoattack, verdicts
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack import (
    ATTACKS,
    build_autoattack,
    check_constants,
    classify_under_autoattack,
    target_count,
)
from fastpeer.evaluation.hidden_gradients import SQUARE
from fastpeer.evaluation.verdicts import Verdicts, VerdictsFile
from fastpeer.models import build_model
from fastpeer.step.options import Options
from tests.evaluation.streams import stream_of

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


@pytest.fixture
def brief(monkeypatch):
    """The same attacks with fewer iterations."""
    monkeypatch.setattr(autoattack, "ITERATIONS", 4)
    monkeypatch.setattr(autoattack, "SQUARE_QUERIES", 60)


def told(done, stage=""):
    pass


def settings_for(classes, epsilon, norm="linf"):
    return AttackSettings(
        epsilon,
        epsilon / 3,
        classes=classes,
        seed=3,
        batch_size=4,
        options=evaluation_options(CPU),
        norm=norm,
    )


def labelled(classifier, number, wrong=(0,), classes=5):
    """Images, labels that are the classifier's but for some, and their stream in batches of 4."""
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = classifier(images).argmax(1)
    labels[list(wrong)] = (labels[list(wrong)] + 1) % classes
    return images, labels, stream_of(images, labels, 4)


def verdicts_of(classifier, stream, settings, progress=told, file=None):
    return classify_under_autoattack(classifier, stream, settings, progress, file)


def assert_as_official(classes, number, epsilon, norm):
    classifier = network(classes)
    images, labels, stream = labelled(classifier, number, classes=classes)
    official = build_autoattack(classifier, epsilon, classes, 3, CPU, norm)
    _, predicted = official.run_standard_evaluation(images, labels, batch_size=4)
    verdicts, _ = verdicts_of(classifier, stream, settings_for(classes, epsilon, norm))
    assert verdicts.correct.tolist() == (predicted == labels).tolist()
    return verdicts


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("classes", "epsilon", "norm"), [(5, 0.003, "linf"), (12, 0.006, "linf"), (5, 0.03, "l2")]
)
def test_each_image_has_the_verdict_of_pyautoattack_on_the_whole_set(classes, epsilon, norm):
    """In batches of survivors, the last of which is a single image: 13 images in batches of 4."""
    verdicts = assert_as_official(classes, 13, epsilon, norm)
    assert 1 < verdicts.correct.sum() < 12
    counts = verdicts.counts()
    assert list(counts) == ["clean", *ATTACKS]
    assert counts["clean"] == 1
    assert sum(counts.values()) == 13 - verdicts.correct.sum()


@pytest.mark.soak
@pytest.mark.parametrize(("classes", "epsilon"), [(5, 0.003), (9, 0.003), (10, 0.002), (200, 0.0003)])
def test_each_image_has_the_verdict_of_pyautoattack_with_all_iterations(classes, epsilon):
    assert_as_official(classes, 41, epsilon, "linf")


@pytest.mark.usefixtures("brief")
def test_images_misclassified_clean_or_under_pgd_are_so_under_autoattack():
    classifier, settings = network(5), settings_for(5, 0.003)
    *_, stream = labelled(classifier, 13)
    done, stages = [], []

    def progress(images, stage=""):
        done.append(images)
        stages.append(stage)

    found = {
        name: classify_under_attack(name, classifier, stream, settings, progress)
        for name in ("clean", "pgd20", "aa")
    }
    clean, pgd, aa = (one.correct for one in found.values())
    assert done[:8] == [4, 8, 12, 13] * 2
    assert done[8:13] == [0, 4, 8, 12, 13]
    assert max(done) == done[-1] == 13
    names = [re.sub(r", [\d.]+ % correct", "", stage) for stage in dict.fromkeys(stages) if stage]
    assert list(dict.fromkeys(names)) == [f"{name} ({place} of 4)" for place, name in enumerate(ATTACKS, 1)]
    assert clean.tolist() == [False] + [True] * 12
    assert not (aa & ~clean).any()
    assert not (aa & ~pgd).any()
    assert found["aa"].broken["clean"] == 1


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("brief")
def test_stopped_anywhere_it_goes_on_to_the_same_verdicts(tmp_path, caplog):
    classifier, settings = network(5), settings_for(5, 0.003)
    *_, stream = labelled(classifier, 13)
    whole, _ = verdicts_of(classifier, stream, settings)
    for last in (1, 3, 6, 12, 15, 19):
        file, calls = VerdictsFile(tmp_path / "verdicts", {"stopped at": last}), count(1)

        def progress(done, stage="", calls=calls, last=last):
            if next(calls) == last:
                raise Killed

        with pytest.raises(Killed):
            verdicts_of(classifier, stream, settings, progress, file)
        verdicts, _ = verdicts_of(classifier, stream, settings, told, file)
        assert verdicts.fallen.tolist() == whole.fallen.tolist()
        assert sorted(path.name for path in file.path.parent.iterdir() if path.name.startswith(".")) == []
    assert "goes on where it was stopped: square, batch" in caplog.text


def test_verdicts_that_are_damaged_of_others_or_complete_are_not_gone_on_with(tmp_path, caplog, monkeypatch):
    facts = {"weights_sha256": "a", "epsilon": 8 / 255}
    file, found = VerdictsFile(tmp_path, facts), Verdicts(3, ATTACKS)
    found.note(np.arange(3), np.array([True, False, True]), np.array([True, True, False]))
    file.write(found)
    assert VerdictsFile(tmp_path, facts | {"epsilon": 0.1}).path != file.path
    again = Verdicts(3, ATTACKS)
    file.read(again)
    assert (again.attack, again.batch, again.fallen.tolist()) == (-1, 1, [-1, 0, 0])
    assert again.finite.tolist() == [True, True, False]
    text = file.path.read_text("utf-8")
    for damaged in (text.replace("[-1, 0, 0]", "[-1, -1, 0]"), text[:-9], "[]", "3", "\0", "[" * 100_000):
        caplog.clear()
        file.path.write_text(damaged, "utf-8")
        fresh = Verdicts(3, ATTACKS)
        file.read(fresh)
        assert (fresh.batch, fresh.fallen.tolist()) == (0, [-1, -1, -1])
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith("; AutoAttack begins anew")
    monkeypatch.setattr(verdicts, "FORMAT", 2)
    file.write(found)
    monkeypatch.undo()
    file.read(fresh)
    assert (fresh.batch, caplog.messages[-1].endswith("must be 1, got 2); AutoAttack begins anew")) == (
        0,
        True,
    )
    found.attack = len(ATTACKS)
    file.write(found)
    fresh = Verdicts(3, ATTACKS)
    file.read(fresh)
    assert fresh.batch == 0


def test_what_cannot_be_kept_is_logged_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    file = VerdictsFile(tmp_path / "file", {})
    for _ in range(2):
        file.write(Verdicts(2, ATTACKS))
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0]


@pytest.mark.usefixtures("brief")
def test_images_that_square_alone_finds_are_a_warning(monkeypatch):
    classifier, settings = network(5), settings_for(5, 0.003)
    *_, stream = labelled(classifier, 13)
    for kind in (APGDAttack, APGDAttack_targeted, FABAttack_PT):
        monkeypatch.setattr(kind, "perturb", lambda self, images, labels: images)
    verdicts, reasons = verdicts_of(classifier, stream, settings)
    assert verdicts.counts()["square"] > 0
    assert reasons == [SQUARE]


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
    found = classify_under_attack("aa", convolutional, stream_of(images, labels, 2), settings, told)
    assert found.correct.shape == found.finite.shape == (3,)
    assert found.finite.all()
