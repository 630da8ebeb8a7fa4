"""What holds of methods among each other, and of every method's table."""

import copy
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.kernels.distill_loss import distill_loss
from fastpeer.methods import LossSettings, build_table, loss_settings, method_names
from fastpeer.methods.peeraid import Loss as PeerAidLoss
from fastpeer.methods.table import (
    LABELS,
    Attack,
    Confidence,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    Later,
    LogitDistance,
    Method,
    forwards_of,
)
from fastpeer.models import build_model
from fastpeer.step.input_gradient import input_gradient_distance
from fastpeer.step.loss import LossTable, active_terms, learning_forwards
from fastpeer.step.step import TrainingStep

pytestmark = pytest.mark.usefixtures("nothing_logged")

CLASSES, BATCH = 5, 4
CLEAN, ADV = Forward("student", "clean"), Forward("student", "adversarial")
PEER = Forward("peer", "adversarial")
TEACHER, TEACHER_ADV = Forward("teacher", "clean"), Forward("teacher", "adversarial")
ATTACKS = {"adversarial": Attack("student", LABELS, "none")}
STILL = AttackConfig(steps=2, start_std=0)


def table(name, **loss):
    return build_table(name, loss_settings(name)(**loss))


def random_logits(forwards, seed=0, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    return {
        one: spread * torch.randn(BATCH, CLASSES, generator=random, dtype=torch.float64) for one in forwards
    }


LABELS_OF = torch.tensor([0, 3, 1, 4])


def of_table(method, logits, moving=None):
    """Return each forward's gradient and each term's value, as the step computes them."""
    loss = LossTable(method)
    given = [logits[forward] for forward in loss.forwards]
    weights = loss.sample_weights(given, LABELS_OF, moving or {})
    result = distill_loss(given, LABELS_OF, loss.terms, 1.0, weights)
    return dict(zip(loss.forwards, result.gradients, strict=True)), result.values


# What a term is, from its docstring alone.


def share_of(confidence, logits):
    if confidence is None:
        return torch.ones(BATCH, dtype=torch.float64)
    probability = logits[confidence.forward].detach().softmax(1)[torch.arange(BATCH), LABELS_OF]
    power = probability**confidence.power
    return 1 - power if confidence.complement else power


def literal_value(term, logits):
    share = share_of(term.sample_weight, logits)
    prediction = logits[term.prediction]
    if isinstance(term, CrossEntropy):
        probability = prediction.softmax(1)[torch.arange(BATCH), LABELS_OF]
        return term.weight * (share * -probability.log()).sum() / BATCH
    target = logits[term.target] if term.target_grad else logits[term.target].detach()
    divisor = BATCH * CLASSES if term.reduction == "mean" else BATCH
    if isinstance(term, LogitDistance):
        return term.weight * (share[:, None] * (prediction - target) ** 2).sum() / divisor
    p, q = ((one / term.temperature).softmax(1) for one in (target, prediction))
    return term.weight * term.temperature**2 * (share[:, None] * p * (p.log() - q.log())).sum() / divisor


def literal_gradients(method, logits):
    leaves = {forward: one.clone().requires_grad_() for forward, one in logits.items()}
    terms = [term for term in method.terms.values() if term.weight != 0]
    values = [literal_value(term, leaves) for term in terms]
    sum(values).backward()
    gradients = {
        forward: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for forward, leaf in leaves.items()
    }
    return gradients, [value.item() for value in values]


FORWARDS = [
    Forward(network, images) for network in ("student", "peer") for images in ("clean", "adversarial")
]
FROZEN = [
    Forward(network, images)
    for network in ("teacher", "natural_teacher")
    for images in ("clean", "adversarial")
]
weights = st.floats(0.01, 30) | st.floats(-3, -0.01)
reductions = st.sampled_from(["mean", "batchmean"])


def confidences(forwards):
    made = st.builds(Confidence, st.sampled_from(forwards), st.floats(0.05, 3), st.booleans())
    return st.none() | made


def terms_over(run):
    anything = [*run, *FROZEN]
    predictions, targets, shares = st.sampled_from(run), st.sampled_from(anything), confidences(anything)
    return st.one_of(
        st.builds(CrossEntropy, predictions, weights, shares),
        st.builds(
            Divergence, predictions, targets, weights, st.floats(0.5, 20), reductions, st.booleans(), shares
        ),
        st.builds(LogitDistance, predictions, targets, weights, reductions, st.booleans(), shares),
    )


@st.composite
def tables(draw):
    run = draw(st.lists(st.sampled_from(FORWARDS), min_size=1, max_size=6))
    terms = draw(st.lists(terms_over(list(dict.fromkeys(run))), min_size=1, max_size=7))
    named = {str(number): term for number, term in enumerate(terms)}
    return Method(("student", "peer"), tuple(run), named, ATTACKS)


@given(method=tables(), seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_gradient_of_any_table_is_autograds(method, seed, spread):
    logits = random_logits([*FORWARDS, *FROZEN], seed, spread)
    gradients, values = of_table(method, logits)
    expected, literal_values = literal_gradients(method, logits)
    assert values.tolist() == pytest.approx(literal_values, rel=1e-9, abs=1e-12)
    size = max(one.abs().max().item() for one in expected.values())
    for forward, one in gradients.items():
        if forward.network in method.trained:
            torch.testing.assert_close(one, expected[forward], rtol=1e-9, atol=1e-11 * max(1.0, size))
    learning = learning_forwards(method)
    for forward in method.forwards:
        assert forward in learning or not expected[forward].any()


def test_that_comparison_sees_every_word_of_a_term():
    base = Divergence(ADV, CLEAN, 2.0, 3.0, "mean", True, Confidence(TEACHER, 0.5))
    logits = random_logits([*FORWARDS, *FROZEN])

    def gradients(term):
        return literal_gradients(Method(("student",), (ADV, CLEAN), {"one": term}, ATTACKS), logits)[0]

    for change in (
        {"weight": 2.01}, {"temperature": 3.01}, {"reduction": "batchmean"}, {"target_grad": False},
        {"sample_weight": None}, {"sample_weight": Confidence(TEACHER, 0.51)},
        {"sample_weight": Confidence(TEACHER, 0.5, complement=True)},
        {"sample_weight": Confidence(TEACHER_ADV, 0.5)}, {"target": TEACHER},
    ):  # fmt: skip
        changed = Method(("student",), (ADV, CLEAN), {"one": replace(base, **change)}, ATTACKS)
        found = of_table(changed, logits)[0]
        expected = gradients(base)
        assert max((found[one] - expected[one]).abs().max().item() for one in (ADV, CLEAN)) > 1e-5, change


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_rslad_with_the_student_as_its_teacher_is_trades_with_a_fixed_target(scale):
    logits = random_logits([CLEAN, ADV])
    logits[TEACHER] = logits[CLEAN]
    rslad, _ = of_table(table("rslad", reduction="batchmean", scale=scale), logits)
    both = table("trades", beta=6.0, target_grad=False)
    trades, _ = of_table(replace(both, terms={"student_kl_clean": both.terms["student_kl_clean"]}), logits)
    torch.testing.assert_close(rslad[ADV] / (scale * 5 / 6), trades[ADV] / 6, rtol=1e-12, atol=1e-14)
    assert rslad[ADV].abs().max() > 0.01
    # It is taught to be on clean images what it is.
    torch.testing.assert_close(rslad[CLEAN], torch.zeros_like(rslad[CLEAN]), rtol=0, atol=1e-15)
    assert not trades[CLEAN].any()


def network(seed, name="resnet8"):
    torch.manual_seed(seed)
    return build_model(name, CLASSES).double()


def frozen(seed):
    teacher = network(seed)
    with torch.no_grad():
        for _ in range(3):
            teacher(torch.rand(8, 3, 8, 8).double())
    return teacher.eval().requires_grad_(False)


def batch():
    random = torch.Generator().manual_seed(1)
    return Batch(torch.rand(BATCH, 3, 8, 8, generator=random).double(), LABELS_OF)


def images_attacked(student, teacher):
    """Write PeerAiD's attack down."""
    images = batch().images
    student.eval()
    target = teacher(images).softmax(1).detach()
    found = images
    for _ in range(STILL.steps):
        leaf = found.detach().requires_grad_()
        loss = F.kl_div(student(leaf).log_softmax(1), target, reduction="sum")
        found = leaf.detach() + STILL.step_size * torch.autograd.grad(loss, leaf)[0].sign()
        found = found.clamp(images - STILL.epsilon, images + STILL.epsilon).clamp(0, 1)
    student.train()
    return found


def test_rslad_and_trades_attack_alike_if_the_teacher_is_the_student():
    student = frozen(0)
    networks = {"student": student.train().requires_grad_(True)}
    networks["teacher"] = copy.deepcopy(student).eval().requires_grad_(False)
    found = {}
    for name in ("rslad", "trades", "adaad"):
        config = Config(method=name, precision="fp64", attack=replace(STILL, start_std=0.001))
        step = TrainingStep(config, config.table, networks)
        found[name] = step.adversarial(batch().images, LABELS_OF)["adversarial"]
    assert torch.equal(found["rslad"], found["trades"])
    assert (found["rslad"] - batch().images).abs().max() > 1.9 * STILL.step_size
    # AdaAD's teacher says the same of any image as this student: there is nothing to climb.
    assert not torch.equal(found["rslad"], found["adaad"])


def sgd_step(student, loss):
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    loss.backward()
    optimizer.step()


def assert_same(ours, theirs):
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["on", "off"])
def test_peeraid_whose_peer_is_frozen_is_distillation_from_a_teacher(engine):
    config = Config(
        precision="fp64", attack=STILL, loss=PeerAidLoss(gamma1=0.0, gamma2=0.0, lambda1=0.3),
        engine=EngineConfig(fold=engine, chain=engine, merge=engine, compile="off"),
    )  # fmt: skip
    whole = config.table
    forwards = tuple(one for one in whole.forwards if one.network == "student")
    method = replace(whole, trained=("student",), forwards=forwards)
    assert method.frozen == ("peer",)
    ours, peer = network(0), frozen(1)
    theirs, before = copy.deepcopy(ours), copy.deepcopy(peer.state_dict())
    step = TrainingStep(config, method, {"student": ours, "peer": peer})
    result = step.train_on(batch(), 0)

    attacked = images_attacked(theirs, peer)
    theirs(attacked)
    logits, clean = theirs(attacked), theirs(batch().images)
    with torch.no_grad():
        taught = peer(attacked)
    tau = 5.0

    def divergence(target):
        log_probability, target = (logits / tau).log_softmax(1), (target / tau).log_softmax(1)
        return tau**2 * (target.exp() * (target - log_probability)).mean()

    losses = [0.3 * F.cross_entropy(logits, LABELS_OF), divergence(taught), divergence(clean)]
    sgd_step(theirs, sum(losses))
    assert_same(ours, theirs)
    assert result.losses.tolist() == pytest.approx([one.item() for one in losses], rel=1e-10)
    assert all(torch.equal(before[name], one) for name, one in peer.state_dict().items())


def test_kdiga_without_its_own_term_is_plain_distillation():
    config = Config(
        method="kdiga", precision="fp64", loss=loss_settings("kdiga")(gamma=0.0, alpha=0.4, temperature=2.0)
    )
    method = config.table
    ours, teacher = network(0), frozen(1)
    theirs = copy.deepcopy(ours)
    step = TrainingStep(config, method, {"student": ours, "teacher": teacher})
    assert list(active_terms(method)) == ["student_kl_teacher", "student_ce"]
    result = step.train_on(batch(), 0)
    assert result.losses.shape == (2,)

    theirs(batch().images)
    logits = theirs(batch().images)
    target = (teacher(batch().images) / 2).log_softmax(1)
    divergence = 4 * (target.exp() * (target - (logits / 2).log_softmax(1))).mean()
    sgd_step(theirs, 0.4 * divergence + 0.6 * F.cross_entropy(logits, LABELS_OF))
    assert_same(ours, theirs)


def test_input_gradients_of_equal_networks_are_at_no_distance():
    student, images = frozen(0), batch().images.requires_grad_()
    config = Config(method="kdiga", precision="fp64")
    found = []
    for seed in (0, 3):
        teacher = frozen(seed) if seed else copy.deepcopy(student)
        step = TrainingStep(config, config.table, {"student": network(2), "teacher": teacher})
        victim = step.predictions.victims["teacher"]
        found.append(input_gradient_distance(student(images), images, LABELS_OF, victim).item())
    assert found[0] < 1e-12 < 1e-5 < found[1]


# What has to hold of a table, whatever it says.

EVERY = {
    f"{name}{changes or ''}": table(name, **changes)
    for name in method_names()
    for changes in ({}, *({"kdiga": [{"adversarial": True}], "adaad": [{"alpha": 0.7}]}.get(name, [])))
}


def epochs_of(method):
    yield method
    if method.later is not None:
        yield from epochs_of(method.later.method)


@pytest.mark.parametrize("name", EVERY)
def test_every_table_speaks_of_what_it_has(name):
    for method in epochs_of(EVERY[name]):
        assert "student" in method.trained
        assert len(set(method.trained)) == len(method.trained)
        known = {"clean", *method.attacks}
        spoken_of = [forward for term in method.terms.values() for forward in forwards_of(term)]
        everything = [*method.forwards, *method.afterwards, *spoken_of]
        assert {forward.images for forward in everything} <= known
        assert {forward.network for forward in (*method.forwards, *method.afterwards)} <= set(method.trained)
        for forward in spoken_of:
            assert forward.network in method.frozen or forward in method.forwards, forward
        for term in method.terms.values():
            assert term.prediction.network in method.trained
            assert getattr(term, "temperature", 1.0) > 0
            assert math.isfinite(term.weight)
        for label, attack in method.attacks.items():
            assert attack.victim in method.trained
            if attack.away_from != LABELS:
                assert attack.away_from.images in ("clean", label)
        assert set(method.attacks) <= {forward.images for forward in everything}, "an attack for nobody"
        assert set(method.trained) <= {forward.network for forward in method.forwards}
        assert learning_forwards(method)
        if method.balance:
            assert all(isinstance(method.terms[one], Divergence) for one in method.balance.terms)
    assert EVERY[name].seeks_robustness == (name != "natural")


@pytest.mark.parametrize("name", EVERY)
def test_logs_can_tell_terms_and_forwards_apart(name):
    for method in epochs_of(EVERY[name]):
        names = [f"{one.network}_{one.images}" for one in LossTable(method).forwards]
        assert len(set(names)) == len(names)
        # As torch's and TensorBoard's names have them.
        assert all(term.isidentifier() for term in method.terms)


@pytest.mark.parametrize("name", method_names())
def test_settings_of_every_method_are_plain_documented_and_finite(name):
    settings = loss_settings(name)
    assert settings.__doc__
    for entry in fields(settings):
        value = getattr(settings(), entry.name)
        assert isinstance(value, (bool, int, float, str))
        if isinstance(value, float) and not isinstance(value, bool):
            for bad in (math.nan, math.inf, -math.inf):
                with pytest.raises(ValueError, match=entry.name):
                    settings(**{entry.name: bad})
        if "temperature" in entry.name:
            with pytest.raises(ValueError, match="more than 0"):
                settings(**{entry.name: 0.0})
    with pytest.raises(TypeError):
        settings(1.0)
    assert is_dataclass(settings)
    assert issubclass(settings, LossSettings)
    assert settings() == Config(method=name).loss


TEACHERS = {
    "natural": (), "pgd-at": (), "trades": (), "cat": (), "peeraid": (),
    "ard": ("teacher",), "rslad": ("teacher",), "adaad": ("teacher",), "kdiga": ("teacher",),
    "iad": ("teacher",),
    "akd2": ("natural_teacher", "teacher"), "iad-ii": ("natural_teacher", "teacher"),
    "mtard": ("natural_teacher", "teacher"),
}  # fmt: skip


def test_teachers_are_whatever_is_not_trained():
    assert {name: tuple(sorted(table(name).frozen)) for name in method_names()} == TEACHERS
    trained = {name: table(name).trained for name in method_names()}
    assert {name for name, one in trained.items() if "peer" in one} == {"peeraid", "cat"}


def test_a_network_that_only_a_later_table_or_an_attack_speaks_of_is_frozen_too():
    plain = Method(("student",), (CLEAN,), {"one": CrossEntropy(CLEAN, 1.0)})
    assert plain.frozen == ()
    assert not plain.seeks_robustness
    later = replace(plain, terms={"one": InputGradientDistance(CLEAN, "teacher", 1.0)})
    assert replace(plain, later=Later(3, later)).frozen == ("teacher",)
    assert later.seeks_robustness
    attacked = replace(plain, attacks={"adversarial": Attack("student", TEACHER, "none")})
    assert attacked.frozen == ("teacher",)
    share = CrossEntropy(CLEAN, 1.0, Confidence(Forward("natural_teacher", "clean"), 1.0))
    assert replace(plain, terms={"one": share}).frozen == ("natural_teacher",)


def test_tables_change_at_their_epochs_and_not_before():
    plain = Method(("student",), (CLEAN,), {"one": CrossEntropy(CLEAN, 1.0)})
    third = replace(plain, terms={"three": CrossEntropy(CLEAN, 3.0)})
    second = replace(plain, terms={"two": CrossEntropy(CLEAN, 2.0)}, later=Later(5, third))
    first = replace(plain, later=Later(2, second))
    assert [next(iter(first.at(epoch).terms)) for epoch in range(7)] == [
        "one", "one", "two", "two", "two", "three", "three"
    ]  # fmt: skip
    assert first.at(4) is first.at(3)
    for name, begin in (("iad", 60), ("iad-ii", 40)):
        method = table(name)
        assert method.at(begin - 1) is method
        assert "student_kl_clean" not in method.at(begin - 1).terms
        assert "student_kl_clean" in method.at(begin).terms
        assert "student_kl_clean" in table(name, begin=0).at(0).terms


def test_a_table_in_which_nothing_weighs_anything_is_refused():
    for name, nothing in (("pgd-at", {}), ("kdiga", {"alpha": 0.0, "gamma": 1.0})):
        method = table(name, **nothing)
        terms = {
            one: term if isinstance(term, InputGradientDistance) else replace(term, weight=0.0)
            for one, term in method.terms.items()
        }
        with pytest.raises(UserError, match="nothing to learn"):
            active_terms(replace(method, terms=terms))
