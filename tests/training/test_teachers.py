"""Teachers: finding their weights, building them and checking their accuracy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastpeer.checkpoint import save_checkpoint
from fastpeer.config import AttackConfig, Config, ModelConfig, TeacherConfig
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.errors import UserError
from fastpeer.files import file_sha256
from fastpeer.methods import default_loss
from fastpeer.models import build_model
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import save_weights
from fastpeer.run_folder import RunFolder
from fastpeer.training.teacher_accuracy import check_accuracy, permuted_classes
from fastpeer.training.teachers import Teacher, build_teacher, find_teacher

MEAN, STD = (0.5,), (0.25,)
WEIGHTS = "runs/trained/best.safetensors"
CONFIG = Config(model=ModelConfig(student="resnet8", peer="wideresnet10x1", mean=MEAN, std=STD))
DATA = {"folder": "", "train_sha256": "", "classes": 5, "size": [8, 8]}


def network(name="resnet8", seed=0):
    torch.manual_seed(seed)
    return build_model(name, 5, mean=MEAN, std=STD)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "trained")
    folder.create(CONFIG, {"data": DATA}, force=False)
    pair = {"student": network(), "peer": network("wideresnet10x1"), "swa": network(seed=3)}
    summary = {"last": {"epoch": 4, "clean": 80.0}, "swa": {"epoch": 4, "clean": 85.0}}
    save_checkpoint(folder.checkpoints, "last", 1, pair, {"summary": summary})
    return folder


@pytest.fixture
def best(run):
    for name, clean in (("best", 90.0), ("best-swa", 95.0)):
        state = {"selected": {"epoch": 3, "clean": clean}, "split": "val"}
        save_checkpoint(run.checkpoints, name, 1, {"student": network(seed=2)}, state)
    return run


def find(path, **settings):
    return find_teacher("teacher", TeacherConfig(weights=str(path), **settings), "mobilenetv2", "ard")


def test_a_run_stands_for_its_best_student(best):
    found = find(best.path)
    weights = best.checkpoints / "best/student.safetensors"
    expected = Teacher(
        "teacher",
        "resnet8",
        MEAN,
        STD,
        weights,
        file_sha256(weights),
        classes=5,
        size=(8, 8),
        clean_accuracy=90.0,
        method="peeraid",
        robust=True,
    )
    assert found == expected


def test_without_a_best_one_it_is_the_last(run):
    found = find(run.path)
    assert found.weights == run.checkpoints / "last/student.safetensors"
    assert found.clean_accuracy == 80.0


@pytest.mark.parametrize(
    ("path", "network", "clean"),
    [
        ("checkpoints/best-swa", "resnet8", 95.0),
        ("checkpoints/best", "resnet8", 90.0),
        ("checkpoints/last/swa.safetensors", "resnet8", 85.0),
        ("checkpoints/last/peer.safetensors", "wideresnet10x1", None),
    ],
)
def test_checkpoints_and_files_of_a_run_have_its_facts(best, path, network, clean):
    found = find(best.path / path)
    assert (found.network, found.mean, found.clean_accuracy, found.size) == (network, MEAN, clean, (8, 8))


def test_a_run_of_an_older_version_recorded_less(tmp_path):
    folder = RunFolder(tmp_path / "old")
    folder.create(CONFIG, {"data": {"folder": "", "train_sha256": ""}}, force=False)
    save_checkpoint(folder.checkpoints, "last", 1, {"student": network()}, {})
    found = find(folder.path)
    assert (found.classes, found.size, found.clean_accuracy) == (None, None, None)


def test_a_file_outside_a_run_is_the_students_network_with_its_own_normalisation(tmp_path):
    path = tmp_path / "alone.safetensors"
    save_weights(network(), path)
    found = find(path)
    assert (found.network, found.mean, found.std, found.classes) == ("mobilenetv2", MEAN, STD, None)
    overridden = find(path, network="resnet8", mean=(0.1,), std=(0.2,))
    assert (overridden.network, overridden.mean, overridden.std) == ("resnet8", (0.1,), (0.2,))


def test_a_file_that_records_its_facts_needs_no_settings(tmp_path, logged):
    path = tmp_path / "alone.safetensors"
    save_weights(network(), path, WeightFacts(network="resnet8", classes=5, size=(8, 8)))
    found = find(path)
    assert (found.network, found.classes, found.size) == ("resnet8", 5, (8, 8))
    assert logged == [f"the teacher {path} normalises images by mean 0.5 and std 0.25, as its file records"]
    build_teacher(found, 5, (8, 8))


def test_a_teacher_may_be_any_set_of_weights_in_a_file(tmp_path, logged):
    path = tmp_path / "two.pth"
    plain, averaged = (build_model("resnet8", 5).state_dict() for _ in range(2))
    torch.save({"model": plain, "model_ema": averaged}, path)
    built = build_teacher(find(path, network="resnet8", weights_key="model_ema"), 5, (8, 8))
    assert torch.equal(built.linear.weight.float(), averaged["linear.weight"])
    assert logged == [f"{path}: took the weights under model_ema; others: --teacher.weights-key model"]


def test_a_normalisation_that_is_set_overrules_that_of_the_file(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(network().network.state_dict() | {"mu": torch.full((3,), 125.0), "sigma": torch.ones(3)}, path)
    with pytest.raises(UserError, match="mean must be at most 1"):
        find(path, network="resnet8")
    assert find(path, network="resnet8", mean=(0.5,), std=(0.2,)).mean == (0.5,)


def test_missing_teachers_are_one_line(run, tmp_path):
    with pytest.raises(
        UserError, match=r"^the method mtard needs a natural teacher: --natural-teacher PATH \(a run"
    ):
        find_teacher("natural_teacher", TeacherConfig(), "resnet8", "mtard")
    with pytest.raises(UserError, match=r"--teacher .*absent: neither a run, nor a checkpoint, nor a file"):
        find(tmp_path / "absent")
    empty = RunFolder(tmp_path / "empty")
    empty.create(CONFIG, {"data": DATA}, force=False)
    with pytest.raises(UserError, match=r"this run holds no checkpoint yet"):
        find(empty.path)
    with pytest.raises(UserError, match=rf"a folder of runs: name one, such as {empty.path}"):
        find(tmp_path)


def test_teacher_is_built_frozen_and_exact_without_drawing_random_numbers(best):
    before = torch.get_rng_state()
    built = build_teacher(find(best.path), 5, (8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())
    images = torch.rand(2, 3, 8, 8).double()
    torch.testing.assert_close(built(images), network(seed=2).double().eval()(images), rtol=0, atol=0)


def test_other_classes_and_sizes_are_refused_with_both_numbers(best):
    with pytest.raises(
        UserError, match=r"teacher must be for 10 classes, got 5 classes \(.*\): name another with --teacher"
    ):
        build_teacher(find(best.path), 10, (8, 8))
    with pytest.raises(UserError, match=r"must be trained on images of 16×8, got 8×8 \("):
        build_teacher(find(best.path), 5, (16, 8))


class PredictedSource:
    """A source of images whose pixels are the class that `ReadPixel` predicts."""

    batch_size, device = 64, torch.device("cpu")

    def __init__(self, labels, predictions):
        self.labels, self.predictions = np.asarray(labels), torch.as_tensor(predictions)
        self.order = np.array([], dtype=int)

    def batches(self, order, key, dtype):
        # Of the clean images, which are more than those that are attacked.
        self.order = max(self.order, order, key=len)
        for first in range(0, len(order), self.batch_size):
            part = order[first : first + self.batch_size]
            pixels = self.predictions[part].to(dtype) / SHADES
            images = pixels.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
            yield Batch(images, torch.as_tensor(self.labels[part]))


class ReadPixel(nn.Module):
    """Reads the pixel; has no gradient."""

    def forward(self, images):
        predictions = (SHADES * images[:, 0, 0, 0]).round().long()
        return nn.functional.one_hot(predictions, SHADES).to(images.dtype)


class Fragile(ReadPixel):
    """Takes every image with the faintest noise for one of the next class."""

    def forward(self, images):
        shades = SHADES * images
        noisy = (shades - shades.round()).abs().mean((1, 2, 3)) > 0.01
        logits = super().forward(images)
        return torch.where(noisy[:, None], logits.roll(1, 1), logits)


SHADES = 10
"""Grey values, each of which stands for a class; a little noise does not change them."""


def check(correct, images, clean=None, network=None, role="teacher"):
    """Check a teacher that classifies the first `correct` of every ten images correctly."""
    labels = np.arange(images) // 10 % 10
    predictions = np.where(np.arange(images) % 10 < correct, labels, (labels + 1) % 10)
    source = PredictedSource(labels, predictions)
    teacher = Teacher(role, "resnet8", (), (), WEIGHTS, "", clean_accuracy=clean)
    stream = EvaluationStream(source, np.arange(images), torch.float32)
    found = check_accuracy(teacher, network or ReadPixel(), stream, 10, AttackConfig(), 0)
    return found.clean, source, found


def test_accuracy_is_measured_on_spread_images_and_logged_in_one_line(logged):
    accuracy, source, _ = check(8, 3000, clean=84.0)
    assert len(source.order) == 1000
    assert source.order[-1] == 2997
    assert accuracy == pytest.approx(80, abs=10)
    assert len(logged) == 1
    assert logged[0].startswith(f"the teacher {WEIGHTS} classifies ")
    assert logged[0].endswith("% of 1000 clean images correctly (its run recorded 84.0 %)")


def test_accuracy_far_below_the_recorded_one_is_a_warning_with_both_numbers(logged):
    accuracy, *_ = check(8, 1000, clean=90.0)
    assert accuracy == 80
    assert "80.0 % of 1000 clean images correctly, but its run recorded 90.0 %: check the" in logged[0]
    # The interval of so few images is wide.
    check(8, 30, clean=90.0)
    assert "(its run recorded 90.0 %)" in logged[1]


def test_no_better_than_guessing_is_refused_with_both_numbers():
    with pytest.raises(
        UserError, match=r"10.0 % of 1000 clean images correctly, guessing 10.0 %.*--teacher.mean"
    ):
        check(1, 1000)
    # 20 % of 20 images may be chance, of 1000 they are not.
    with pytest.raises(UserError, match="guessing"):
        check(2, 20)
    assert check(2, 1000)[0] == 20


def test_robust_accuracy_stands_in_the_same_line_and_is_kept(logged):
    *_, found = check(8, 1000)
    assert logged == [
        f"the teacher {WEIGHTS} classifies {found.robust:.1f} % of 96 images under PGD-5 (linf, epsilon"
        " 8/255) and 80.0 % of 1000 clean images correctly"
    ]
    assert found.robust == pytest.approx(80, abs=4)
    assert found.facts() == {
        "clean": 80.0, "images": 1000, "robust": found.robust, "attacked": 96, "attack": "pgd5",
        "norm": "linf", "epsilon": 8 / 255, "step_size": 2 / 255,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("role", "images", "warns"),
    [("teacher", 1000, True), ("teacher", 10, False), ("natural_teacher", 1000, False)],
)
def test_a_robust_teacher_that_withstands_no_attack_is_a_warning(logged, role, images, warns):
    *_, found = check(10, images, network=Fragile(), role=role)
    assert (found.clean, found.robust) == (100, 0)
    # Ten images are too few to tell.
    assert [line.partition(":")[0] for line in logged[1:]] == [
        f"the teacher {WEIGHTS} withstands no attack, and a student learns to be robust from a robust teacher"
    ] * warns


@pytest.mark.parametrize(
    ("role", "method", "warns"),
    [
        ("teacher", "natural", True),
        ("natural_teacher", "trades", True),
        ("teacher", "kdiga", False),
        ("teacher", "peeraid", False),
        ("natural_teacher", "natural", False),
    ],
)
@pytest.mark.parametrize("place", ["file", "run"])
def test_a_record_of_the_wrong_kind_is_a_warning(tmp_path, logged, role, method, warns, place):
    path = tmp_path / "alone.safetensors"
    if place == "run":
        folder = RunFolder(tmp_path / "run")
        folder.create(replace(CONFIG, method=method, loss=default_loss(method)), {"data": DATA}, force=False)
        save_checkpoint(folder.checkpoints, "last", 1, {"student": network()}, {})
        path = folder.checkpoints / "last" / "student.safetensors"
    else:
        save_weights(build_model("resnet8", 5), path, WeightFacts(network="resnet8", method=method))
    find_teacher(role, TeacherConfig(weights=str(path)), "resnet8", "ard")
    title, flag = role.replace("_", " "), f"--{role.replace('_', '-')}"
    was, wanted = ("without", "against") if role == "teacher" else ("against", "without")
    expected = (
        f"the {title} {path} was trained {was} an attack (method {method}), as its record says: ard learns"
        f" from one trained {wanted} an attack; name another with {flag}"
    )
    assert [line for line in logged if "attack" in line] == [expected] * warns


@pytest.mark.parametrize("method", ["", "somebody.method", "nosuch"])
def test_a_record_that_does_not_tell_the_kind_is_none(tmp_path, logged, method):
    path = tmp_path / "alone.safetensors"
    save_weights(build_model("resnet8", 5), path, WeightFacts(network="resnet8", method=method))
    assert find(path).robust is None
    assert logged == []


def test_a_run_whose_attack_has_no_radius_is_no_robust_teacher(tmp_path, logged):
    folder = RunFolder(tmp_path / "run")
    folder.create(replace(CONFIG, attack=AttackConfig(epsilon=0.0)), {"data": DATA}, force=False)
    save_checkpoint(folder.checkpoints, "last", 1, {"student": network()}, {})
    assert find(folder.path).robust is False
    assert "was trained without an attack" in logged[-1]


def answers(random, classes, per_class, accuracy, order, likeness=0.0):
    """Return labels, and the answers of a teacher whose outputs are in an order of their own.

    Of the images that it gets wrong, the share `likeness` is taken for one class that is like theirs.
    """
    labels = np.repeat(np.arange(classes), per_class)
    right = random.random(len(labels)) < accuracy
    like = np.where(
        random.random(len(labels)) < likeness, labels ^ 1, random.integers(0, classes, len(labels))
    )
    return labels, order[np.where(right, labels, like % classes)]


@pytest.mark.parametrize(
    ("classes", "per_class", "accuracy", "permuted"),
    [(200, 5, 0.6, 20), (200, 5, 0.4, 60), (100, 10, 0.7, 4), (10, 100, 0.5, 2), (10, 100, 0.9, 10)],
)
def test_permuted_classes_are_found(classes, per_class, accuracy, permuted):
    random = np.random.default_rng(0)
    order = np.arange(classes)
    order[:permuted] = np.roll(order[:permuted], 1)
    found = permuted_classes(*answers(random, classes, per_class, accuracy, order), classes)
    assert {pair for pair in found if pair[0] >= permuted} == set()
    assert set(found) <= {(label, order[label]) for label in range(permuted)}
    assert len(found) >= permuted / 5


@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("classes", "per_class", "accuracy"),
    [
        (200, 5, 0.5),
        (200, 5, 0.1),
        (200, 5, 0.02),
        (100, 10, 0.5),
        (100, 10, 0.2),
        (10, 100, 0.5),
        (10, 1, 0.5),
    ],
)
def test_the_order_of_weak_teachers_is_not_doubted(classes, per_class, accuracy, likeness):
    for seed in range(10):
        random = np.random.default_rng(seed)
        # Two classes that are alike are as often right as taken for each other, at worst.
        likely = min(likeness, accuracy / (1 - accuracy))
        given = answers(random, classes, per_class, accuracy, np.arange(classes), likely)
        assert permuted_classes(*given, classes) == [], seed


def test_teachers_that_see_one_class_or_nothing_are_not_permuted():
    labels = np.arange(1000) % 10
    assert permuted_classes(labels, np.zeros(1000, int), 10) == []
    assert permuted_classes(labels, np.full(1000, -1), 10) == []


def test_permuted_classes_are_a_warning_that_names_them(logged):
    labels = np.arange(1000) // 100
    order = np.array([1, 2, 3, 4, 5, 6, 0, 7, 8, 9])
    teacher = Teacher("teacher", "resnet8", (), (), WEIGHTS, "")
    stream = EvaluationStream(PredictedSource(labels, order[labels]), np.arange(1000), torch.float32)
    check_accuracy(teacher, ReadPixel(), stream, 10, AttackConfig(), 0)
    assert len(logged) == 2
    assert logged[1].startswith(
        f"the teacher {WEIGHTS} seems to have its classes in another order than the data set: images of"
        " class 0 are taken for 1, images of class 1 are taken for 2, "
    )
    assert " and 2 more; put the rows" in logged[1]
    with pytest.raises(
        UserError, match=r"guessing.*; its classes seem to be in another order: images of class 0"
    ):
        check(1, 1000)
