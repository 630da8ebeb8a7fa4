"""AutoAttack with the standard's constants, on networks small enough to attack in seconds."""

import re
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from random import Random
from time import perf_counter, sleep

import numpy as np
import pytest
import torch
from torch import nn

from fastpeer.errors import UserError
from fastpeer.evaluation import autoattack, verdicts
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack import classify_under_autoattack
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.apgd import dlr
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork, Passes, rung
from fastpeer.evaluation.autoattack_parts.official import build_autoattack, check_constants
from fastpeer.evaluation.autoattack_parts.own import own_attack
from fastpeer.evaluation.autoattack_parts.standard import ATTACKS, attacks_of_set, target_count
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
def test_too_few_classes_are_refused_and_the_set_for_them_is_named(classes):
    with pytest.raises(UserError, match=f"needs at least 4 classes, got {classes}: use aa-few-classes"):
        build_autoattack(network(classes), EPSILON, classes, 0, CPU)
    with pytest.raises(UserError, match=f"AutoAttack standard needs at least 4 classes, got {classes}"):
        attacks_of_set("aa", classes)


def test_few_classes_have_what_is_defined_with_them_and_others_the_standard():
    assert attacks_of_set("aa-few-classes", 2) == ("apgd-ce", "fab-t", "square")
    assert attacks_of_set("aa-few-classes", 3) == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert attacks_of_set("aa", 4) == ATTACKS
    with pytest.raises(UserError, match="aa-few-classes is for 2 or 3 classes, got 4: use aa"):
        attacks_of_set("aa-few-classes", 4)


@pytest.fixture
def brief(monkeypatch):
    """The same attacks with fewer iterations."""
    monkeypatch.setattr(standard, "ITERATIONS", 4)
    monkeypatch.setattr(standard, "SQUARE_QUERIES", 60)


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


def verdicts_of(classifier, stream, settings, progress=told, file=None, attacks=ATTACKS):
    return classify_under_autoattack(classifier, stream, settings, progress, file, attacks)


def assert_as_official(classes, number, epsilon, norm, way="fast"):
    classifier = network(classes)
    images, labels, stream = labelled(classifier, number, classes=classes)
    official = build_autoattack(classifier, epsilon, classes, 3, CPU, norm)
    _, predicted = official.run_standard_evaluation(images, labels, batch_size=4)
    settings = replace(settings_for(classes, epsilon, norm), autoattack=way)
    verdicts, _ = verdicts_of(classifier, stream, settings)
    assert verdicts.correct.tolist() == (predicted == labels).tolist()
    return verdicts


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("classes", "epsilon", "norm", "way"),
    [
        (5, 0.003, "linf", "fast"),
        pytest.param(12, 0.006, "linf", "plain", marks=pytest.mark.soak),
        pytest.param(5, 0.003, "linf", "official", marks=pytest.mark.soak),
        (5, 0.03, "l2", "fast"),
    ],
)
def test_each_image_has_the_verdict_of_pyautoattack_on_the_whole_set(classes, epsilon, norm, way):
    """In batches of survivors, the last of which is a single image: 13 images in batches of 4."""
    verdicts = assert_as_official(classes, 13, epsilon, norm, way)
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
    names = [stage.split(",")[0] for stage in stages if stage]
    assert all(re.search(r"\), [\d.]+ % robust so far, \d+ images? left", stage) for stage in stages if stage)
    assert any(re.search(r"at most about [\d.]+ (ms|s|min) left$", stage) for stage in stages)
    assert list(dict.fromkeys(names)) == [f"{name} ({place} of 4)" for place, name in enumerate(ATTACKS, 1)]
    assert clean.tolist() == [False] + [True] * 12
    assert not (aa & ~clean).any()
    assert not (aa & ~pgd).any()
    assert found["aa"].broken["clean"] == 1


BRITTLE = {
    # Between what all images withstand and what none does.
    ("linf", 2): 0.05, ("linf", 3): 0.02, ("linf", 9): 0.01, ("linf", 10): 0.01, ("linf", 200): 0.002,
    ("l2", 5): 0.2,
}  # fmt: skip


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize(
    ("norm", "classes"),
    [pytest.param(*case, marks=[] if case == ("linf", 10) else pytest.mark.soak) for case in BRITTLE],
)
@pytest.mark.parametrize("size", [(8, 8), pytest.param((7, 12), marks=pytest.mark.soak)])
def test_each_attack_alone_finds_what_that_of_pyautoattack_finds(attack, norm, classes, size, monkeypatch):
    """With enough iterations for steps to be halved, and a last batch of one image."""
    if classes < standard.MIN_CLASSES_OF[attack]:
        return
    monkeypatch.setattr(standard, "ITERATIONS", 30)
    monkeypatch.setattr(standard, "SQUARE_QUERIES", 120)
    monkeypatch.setattr(standard, "TARGETS", 2)
    torch.manual_seed(0)
    middle = nn.Linear(3 * size[0] * size[1], 16)
    classifier = nn.Sequential(nn.Flatten(), middle, nn.ReLU(), nn.Linear(16, classes)).eval()
    images = torch.rand(25, 3, *size, generator=torch.Generator().manual_seed(1))
    labels = classifier(images).argmax(1)
    official = build_autoattack(classifier, BRITTLE[norm, classes], classes, 3, CPU, norm, (attack,))
    with torch.no_grad():
        _, predicted = official.run_standard_evaluation(images, labels, batch_size=24)
    settings = settings_for(classes, BRITTLE[norm, classes], norm)
    found, _ = verdicts_of(classifier, stream_of(images, labels, 24), settings, attacks=(attack,))
    assert found.correct.tolist() == (predicted == labels).tolist()
    if (norm, classes) == ("linf", 10):
        assert 0 < found.correct.sum() < 25


class Misleading(nn.Module):
    """What is searched in a network's place: it takes every image for wrong, in whatever it is asked."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return -self.classifier(images)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_the_fast_network_alone_calls_broken_is_not(attack, norm):
    classifier = network(5)
    images, labels, _ = labelled(classifier, 6, wrong=())
    settings = settings_for(5, 1e-6, norm)
    attacked = AttackedNetwork(classifier, Options(), CPU, Passes())
    attacked._victim.network = Misleading(classifier)
    with torch.no_grad():
        found = own_attack(attack, attacked, settings)(images, labels)
    assert not found.fallen.any()
    attacked = AttackedNetwork(classifier, Options(), CPU, Passes())
    with torch.no_grad():
        found = own_attack(attack, attacked, settings_for(5, 0.5, norm))(images, labels)
    wrong = classifier(found.images).argmax(1) != labels
    assert wrong.tolist() == found.fallen.tolist()
    assert wrong.any()


def test_graphs_are_captured_for_few_sizes_and_padding_changes_nothing():
    assert [rung(count) for count in (1, 7, 8, 9, 100, 129, 256)] == [1, 7, 8, 10, 112, 160, 256]
    classifier = network(5)
    images, labels, _ = labelled(classifier, 9)
    plain, padded = (AttackedNetwork(classifier, Options(), CPU, Passes()) for _ in range(2))
    padded._pads = True
    for one, other in zip(
        *(net.gradient(dlr, images, labels, labels) for net in (plain, padded)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_square_in_l2_refuses_sizes_that_pyautoattack_cannot_lay_out():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 8, 5)).eval()
    images = torch.rand(2, 3, 12, 8)
    stream = stream_of(images, classifier(images).argmax(1))
    with pytest.raises(UserError, match="cannot run on images of 12x8 pixels"):
        verdicts_of(classifier, stream, settings_for(5, 0.1, "l2"))


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("brief")
def test_stopped_anywhere_it_goes_on_to_the_same_verdicts(tmp_path, caplog, monkeypatch):
    # Else a slow machine shows progress within a batch too, and the stops below come earlier.
    monkeypatch.setattr(autoattack, "SHOWN_EVERY", float("inf"))
    classifier, settings = network(5), settings_for(5, 0.003)
    *_, stream = labelled(classifier, 13)
    whole, _ = verdicts_of(classifier, stream, settings)
    for last in (1, 5, 8, 12, 15, 18):
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
    for number, total in re.findall(r"batch (\d+) of (\d+)", caplog.text):
        assert 1 <= int(number) <= int(total)


def attack_in(folder):
    """Attack as `brief` does, in whatever process; keep the verdicts in a folder."""
    standard.ITERATIONS, standard.SQUARE_QUERIES = 4, 60
    *_, stream = labelled(network(5), 13)
    found, _ = verdicts_of(network(5), stream, settings_for(5, 0.003), told, VerdictsFile(folder, {}))
    return found.fallen.tolist()


@pytest.mark.soak
@pytest.mark.usefixtures("brief")
def test_killed_at_ten_random_instants_it_goes_on_to_the_same_verdicts(tmp_path, caplog):
    began = perf_counter()
    whole = attack_in(tmp_path / "whole")
    lasts, instants = perf_counter() - began, Random(0)
    for number in range(10):
        folder = tmp_path / str(number)
        process = get_context("spawn").Process(target=attack_in, args=(folder,))
        process.start()
        while process.is_alive() and not list(folder.glob("*.json")):
            sleep(0.01)
        process.join(instants.uniform(0, lasts))
        process.kill()
        process.join()
        assert attack_in(folder) == whole
    assert "goes on where it was stopped" in caplog.text


def test_verdicts_that_are_damaged_of_others_or_complete_are_not_gone_on_with(tmp_path, caplog, monkeypatch):
    facts = {"weights_sha256": "a", "epsilon": 8 / 255}
    file, found = VerdictsFile(tmp_path, facts), Verdicts(3, ATTACKS, 2)
    found.note(1, np.array([True]), np.array([False]))
    file.keep(found)
    assert VerdictsFile(tmp_path, facts | {"epsilon": 0.1}).path != file.path
    again = Verdicts(3, ATTACKS, 2)
    file.go_on(again)
    assert (again.attack, again.batches_left(), again.fallen.tolist()) == (-1, [0], [-1, -1, 0])
    assert again.finite.tolist() == [True, True, False]
    text = file.path.read_text("utf-8")
    for damaged in (text.replace("[-1, -1, 0]", "[-1, -1, -1]"), text[:-9], "[]", "3", "\0", "[" * 100_000):
        caplog.clear()
        file.path.write_text(damaged, "utf-8")
        fresh = Verdicts(3, ATTACKS, 2)
        file.go_on(fresh)
        assert (fresh.done, fresh.fallen.tolist()) == (set(), [-1, -1, -1])
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith("; AutoAttack begins anew")
    monkeypatch.setattr(verdicts, "FORMAT", 3)
    VerdictsFile(tmp_path, facts).keep(found)
    monkeypatch.undo()
    file.go_on(fresh)
    assert fresh.done == set()
    assert caplog.messages[-1].endswith("must be 2, got 3); AutoAttack begins anew")
    monkeypatch.setattr(verdicts, "FORMAT", 1)
    VerdictsFile(tmp_path, {"weights_sha256": "a"}).keep(found)
    monkeypatch.undo()
    file.path.unlink()
    file.go_on(fresh)
    assert fresh.done == set()
    assert caplog.messages[-1].endswith("(format 1, now 2), not used; AutoAttack begins anew")
    found.attack = len(ATTACKS)
    file.keep(found)
    fresh = Verdicts(3, ATTACKS, 2)
    file.go_on(fresh)
    assert fresh.done == set()


def test_what_cannot_be_kept_is_logged_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    file = VerdictsFile(tmp_path / "file", {})
    for _ in range(2):
        file.keep(Verdicts(2, ATTACKS, 2))
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0]


@pytest.mark.usefixtures("brief")
def test_images_that_square_alone_finds_are_a_warning(monkeypatch):
    classifier, settings = network(5), settings_for(5, 0.003)
    *_, stream = labelled(classifier, 13)
    build = autoattack.own_attack
    monkeypatch.setattr(
        autoattack,
        "own_attack",
        lambda name, *rest: build(name, *rest) if name == "square" else autoattack._no_attack,
    )
    verdicts, reasons = verdicts_of(classifier, stream, settings)
    assert verdicts.counts()["square"] > 0
    assert reasons == [SQUARE]


def test_batches_may_be_attacked_in_any_order():
    found = Verdicts(5, ("apgd-ce",), 2)
    for number in (2, 0, 1):
        size = len(found.batch(number))
        found.note(number, np.array([number != 0] * size), np.ones(size, bool))
    assert (found.batches_left(), found.fallen.tolist()) == ([], [0, 0, -1, -1, -1])
    found.move_on()
    assert [found.batch(number).tolist() for number in found.batches_left()] == [[2, 3], [4]]
    found.note(1, np.array([False]), np.ones(1, bool))
    assert (found.number_done, found.batches_left()) == (3, [0])


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
