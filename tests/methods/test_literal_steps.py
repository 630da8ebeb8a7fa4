"""Every method's step against an independent literal transcription of the released code, in float64.

PeerAiD's is held against its own in tests/step/test_released_step.py.
"""

import copy
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config, EngineConfig, TrainConfig
from fastpeer.data.counter import counter_key
from fastpeer.data.stream import Batch
from fastpeer.kernels.counter_bits import mixed, signed
from fastpeer.kernels.gaussian_start import gaussian_start
from fastpeer.kernels.uniform_l2_start import uniform_l2_start
from fastpeer.kernels.uniform_start import uniform_start
from fastpeer.methods import loss_settings, method_names
from fastpeer.models import build_model
from fastpeer.step.split_batchnorm import batchnorms
from fastpeer.step.step import TrainingStep
from tests.step.one_layer import OneLayer

pytestmark = pytest.mark.usefixtures("nothing_logged")

STEPS = 3
BATCH = 4
OFF = EngineConfig(fold="off", chain="off", merge="off", compile="off", double_backward="off")
ON = EngineConfig(fold="on", chain="on", merge="on", compile="off", double_backward="on")


ENGINES = (("on", ON), ("off", OFF))


@dataclass(frozen=True)
class Case:
    """A variant of a method, in our settings and in the transcription's.

    Attributes:
        epochs: of each step.
        form: constructor of the literal settings that is not the class itself.
        losses_too: the transcription writes the loss with neither an offset nor as a soft cross-entropy.
    """

    method: str
    loss: Mapping[str, Any] = field(default_factory=dict)
    literal: Mapping[str, Any] = field(default_factory=dict)
    attack: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[int, ...] = (0,) * STEPS
    form: str = ""
    losses_too: bool = True

    @property
    def module(self):
        return importlib.import_module(f"tests.literal.{self.method.replace('-', '_')}")

    def settings(self, **changes):
        made = getattr(self.module.Settings, self.form)() if self.form else self.module.Settings()
        steps = {"steps": 3} if hasattr(made, "steps") else {}
        return replace(made, **{**steps, **self.literal, **changes})

    def config(self, engine):
        attack = AttackConfig(**{"steps": 3, **self.attack})
        loss = loss_settings(self.method)(**self.loss)
        train = TrainConfig(batch_size=BATCH)
        return Config(
            method=self.method, precision="fp64", engine=engine, loss=loss, attack=attack, train=train
        )


IAD_FORM = {"labels": 0.25, "natural": 0.25, "robust": 0.5, "temperature": 1.0}
LATE = {"epochs": (70,) * STEPS}
CASES = {
    "natural": Case("natural"),
    "pgd-at": Case("pgd-at"),
    "pgd-at, Madry": Case("pgd-at", attack={"batchnorm": "train", "clamp_start": "on"}, form="madry"),
    "pgd-at, Rice": Case(
        "pgd-at", {"extra_forwards": True}, attack={"batchnorm": "train", "clamp_start": "on"}, form="rice"
    ),
    "pgd-at, train": Case(
        "pgd-at", attack={"batchnorm": "train"}, literal={"attack_batch_norm": "train"}
    ),
    "pgd-at, clamped": Case("pgd-at", attack={"clamp_start": "on"}, literal={"clamp_start": True}),
    "trades": Case("trades"),
    "trades, released ball": Case(
        "trades", attack={"epsilon": 0.031, "step_size": 0.007}, form="released"
    ),
    "trades, target detached": Case(
        "trades", {"target_grad": False, "beta": 3.0}, {"clean_target_grad": False, "beta": 3.0}
    ),
    "ard": Case("ard"),
    "ard, both terms": Case("ard", {"alpha": 0.7}, {"alpha": 0.7}),
    "ard, IAD": Case("ard", {"temperature": 1.0, "reduction": "batchmean"}, form="iad_repository"),
    "akd2, VITA": Case("akd2", losses_too=False),
    "akd2, IAD": Case("akd2", IAD_FORM, attack={"clamp_start": "off"}, form="iad_repository"),
    "rslad": Case("rslad", losses_too=False),
    "rslad, scaled": Case("rslad", {"scale": 10.0}, {"scale": 10.0}, losses_too=False),
    "iad, early": Case("iad"),
    "iad, late": Case("iad", **LATE),
    "iad, all terms": Case(
        "iad", {"alpha": 0.7, "beta": 0.5, "temperature": 3.0},
        {"alpha": 0.7, "beta": 0.5, "temperature": 3.0}, **LATE,
    ),
    "iad, across": Case("iad", {"begin": 2}, {"begin": 2}, epochs=(0, 1, 2)),
    "iad-ii, early": Case("iad-ii"),
    "iad-ii, late": Case("iad-ii", **LATE),
    "iad-ii, softened": Case("iad-ii", {"temperature": 2.0}, {"temperature": 2.0}, **LATE),
    "iad-ii, across": Case("iad-ii", {"begin": 1}, {"begin": 1}, epochs=(0, 1, 2)),
    "cat": Case("cat"),
    "cat, other weights": Case(
        "cat", {"alpha": 0.6, "beta": 2.0}, {"own_weight": 0.4, "mutual_weight": 0.6, "beta": 2.0}
    ),
    "adaad": Case("adaad"),
    "adaad, both terms": Case("adaad", {"alpha": 0.7}, {"alpha": 0.7}),
    "adaad, CIFAR-100": Case("adaad", {"reduction": "batchmean"}, {"reduction": "batchmean"}),
    "mtard": Case("mtard", losses_too=False),
    "mtard, fast and scaled": Case(
        "mtard", {"scale": 10.0, "rate": 0.5}, {"scale": 10.0, "eta": 0.5}, losses_too=False
    ),
    "kdiga": Case("kdiga"),
    "kdiga, strong": Case("kdiga", {"gamma": 20.0, "alpha": 0.3}, {"gamma": 20.0, "alpha": 0.3}),
    "kdiga, adversarial": Case("kdiga", {"adversarial": True}, {"variant": "kdiga_ard"}),
    "kdiga, adversarial, strong": Case(
        "kdiga", {"adversarial": True, "gamma": 20.0, "temperature": 3.0, "reduction": "batchmean"},
        {"variant": "kdiga_ard", "gamma": 20.0, "temperature": 3.0, "reduction": "batchmean"},
    ),
}  # fmt: skip
BALL = {"norm": "l2", "epsilon": 0.3, "step_size": 0.2}
L2 = {
    f"{name}, L2": replace(
        CASES[name], attack={**CASES[name].attack, **BALL}, literal={**CASES[name].literal, **BALL}
    )
    for name in (
        "pgd-at", "pgd-at, train", "trades", "ard", "akd2, VITA", "rslad", "iad, late", "iad-ii, late", "cat",
        "adaad", "mtard", "kdiga, adversarial",
    )
}  # fmt: skip
"""Every method that attacks, in the L2 ball, which the released codes do not have."""
ALL = {**CASES, **L2}
SMALL, WIDE, PREACT = ("resnet8", 10), ("wideresnet10x2", 100), ("preactresnet18", 200)


def test_every_method_has_a_case():
    assert {case.method for case in CASES.values()} | {"peeraid"} == set(method_names())


def start_networks(case, model, classes):
    """Build the networks of a run; teachers have seen something, and are of another make."""
    method = case.config(OFF).table
    networks: dict[str, nn.Module] = {}
    for seed, role in enumerate([*method.trained, *method.frozen]):
        torch.manual_seed(seed)
        name = model if role in method.trained else "resnet8" if role == "teacher" else "wideresnet10x1"
        networks[role] = build_model(name, classes).double()
        if role in method.frozen:
            for norm in batchnorms(networks[role]):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.1)
            networks[role].eval().requires_grad_(False)
    return networks


def batches(classes, size=8):
    random = torch.Generator().manual_seed(7)
    return [
        (
            torch.randint(0, 256, (BATCH, 3, size, size), generator=random).double() / 255,
            torch.randint(0, classes, (BATCH,), generator=random),
        )
        for _ in range(STEPS)
    ]


def noise_of(config, epoch, images, number):
    """Draw what the engine draws."""
    noise = {}
    for name, attack in config.table.at(epoch).attacks.items():
        purpose = "attack" if name == "adversarial" else f"attack {name}"
        key = torch.tensor(signed(mixed(counter_key(config.seed, purpose), number)))
        zero = torch.zeros_like(images)
        uniform = uniform_l2_start if config.attack.norm == "l2" else uniform_start
        gaussian = attack.start == "gaussian"
        noise[name] = (
            gaussian_start(zero, 0.001, key) if gaussian else uniform(zero, config.attack.epsilon, key)
        )
    return noise


def literal_run(case, networks, classes, rates=(0.1,) * STEPS, **changes):
    config, settings = case.config(OFF), case.settings(**changes)
    optimizers = {
        role: torch.optim.SGD(
            networks[role].parameters(), 0.1, config.optim.momentum, weight_decay=config.optim.weight_decay
        )
        for role in config.table.trained
    }
    state: dict[str, float] = {}
    results = []
    for number, (images, labels) in enumerate(batches(classes)):
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = rates[number]
        epoch = case.epochs[number]
        noise = noise_of(config, epoch, images, number)
        results.append(
            case.module.training_step(networks, optimizers, images, labels, settings, noise, epoch, state)
        )
    return results


@functools.cache
def literal(name, model, classes):
    """Run the transcription once for all engines it is compared with."""
    networks = start_networks(ALL[name], model, classes)
    results = literal_run(ALL[name], networks, classes)
    return {role: network.state_dict() for role, network in networks.items()}, results


def engine_run(case, networks, classes, engine, rates=(0.1,) * STEPS):
    config = case.config(engine)
    step = TrainingStep(config, config.table.at(case.epochs[0]), networks)
    results = []
    for number, (images, labels) in enumerate(batches(classes)):
        table = config.table.at(case.epochs[number])
        if table != step.method:
            step.use(table)
        step.set_learning_rate(rates[number])
        result = step.train_on(Batch(images.to(memory_format=torch.channels_last), labels), number)
        results.append(copy.deepcopy(result))
    return step, results


def distance(networks, expected):
    """Return the greatest difference of any weight or buffer."""
    worst = 0.0
    for role, network in networks.items():
        ours = network.state_dict()
        assert ours.keys() == expected[role].keys()
        worst = max(worst, *((ours[name] - one).abs().max().item() for name, one in expected[role].items()))
    return worst


def assert_equal_to_literal(name, model, classes, engine):
    case = ALL[name]
    networks = start_networks(case, model, classes)
    before = copy.deepcopy({role: network.state_dict() for role, network in networks.items()})
    step, results = engine_run(case, networks, classes, engine)
    expected, literal_results = literal(name, model, classes)
    assert distance(networks, expected) < 1e-10
    for role in step.method.frozen:
        assert all(torch.equal(before[role][key], one) for key, one in networks[role].state_dict().items())
        assert not networks[role].training
        assert any(norm.running_mean.abs().max() > 0.01 for norm in batchnorms(networks[role]))
    for role in step.method.trained:
        assert any((before[role][key] - one).abs().max() > 1e-3 for key, one in expected[role].items())
    if case.losses_too:
        found = [result.losses.sum().item() for result in results]
        assert found == pytest.approx([one["loss"] for one in literal_results], rel=1e-11)
    return step


WIDE_TOO = (
    "natural", "pgd-at", "trades", "ard", "akd2, VITA", "rslad", "iad, late", "iad-ii, late", "cat", "adaad",
    "mtard", "kdiga", "kdiga, adversarial",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "classes", "engine"),
    [
        *(
            pytest.param(name, *SMALL, engine, id=f"{name}-resnet8-{word}")
            for name in CASES
            for word, engine in ENGINES
        ),
        *(
            pytest.param(
                name, *WIDE, engine, id=f"{name}-wideresnet10x2-{word}",
                marks=() if name in WIDE_TOO and engine is ON else pytest.mark.soak,
            )
            for name in CASES
            for word, engine in ENGINES
        ),
    ],
)  # fmt: skip
def test_three_steps_change_every_weight_and_buffer_as_the_released_code_does(name, model, classes, engine):
    assert_equal_to_literal(name, model, classes, engine)


@pytest.mark.parametrize("engine", [ON, OFF], ids=["on", "off"])
@pytest.mark.parametrize("name", L2)
def test_steps_agree_in_the_l2_ball_too(name, engine):
    assert_equal_to_literal(name, *SMALL, engine)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["trades", "mtard"])
def test_steps_agree_for_preactivated_networks_too(name):
    assert_equal_to_literal(name, *PREACT, EngineConfig())


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("adaad, both terms", replace(ON, compile="on")),
        pytest.param("adaad, both terms", replace(OFF, compile="on"), marks=pytest.mark.soak),
        ("kdiga, adversarial", replace(OFF, merge="on", compile="on")),
        *(
            pytest.param(name, replace(OFF, merge="on", compile="on"), marks=pytest.mark.soak)
            for name in ("trades", "ard", "akd2, VITA", "iad, across")
        ),
    ],
    ids=["adaad, chain", "adaad", "kdiga", "trades", "ard", "akd2", "iad"],
)
def test_compiling_changes_no_step(name, engine, monkeypatch):
    monkeypatch.setattr(f"{__name__}.build_model", lambda name, classes: OneLayer(classes))
    step = assert_equal_to_literal(name, "one layer", 10, engine)
    assert step.compiler.seconds


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pgd-at", {"clamp_start": True}),
        ("pgd-at", {"attack_batch_norm": "train"}),
        ("pgd-at, Rice", {"final_attack_forward": False}),
        ("pgd-at, Rice", {"clean_forward": "none"}),
        ("trades", {"beta": 6.001}),
        ("trades", {"clean_target_grad": False}),
        ("ard", {"temperature": 30.1}),
        ("ard", {"alpha": 0.999}),
        ("akd2, VITA", {"natural_teacher_weight": 0.101}),
        ("rslad", {"clean_weight": 0.167}),
        ("iad, late", {"beta": 0.101}),
        ("iad, late", {"clean_target_grad": False}),
        ("iad-ii, late", {"begin": 80}),
        ("cat", {"mutual_weight": 0.951}),
        ("cat", {"peer_clamp_start": False}),
        ("adaad", {"steps": 2}),
        ("adaad", {"step_size": 0.0078}),
        ("mtard", {"eta": 0.03}),
        ("kdiga", {"gamma": 0.51}),
        ("trades, L2", {"epsilon": 0.301}),
        ("trades, L2", {"step_size": 0.201}),
        ("trades, L2", {"norm": "linf"}),
    ],
)
def test_the_comparison_sees_a_single_number(name, change):
    case = ALL[name]
    networks = start_networks(case, *SMALL)
    literal_run(case, networks, SMALL[1], **change)
    assert distance(networks, literal(name, *SMALL)[0]) > 1e-7


@pytest.mark.parametrize("merge", ["on", "off"])
@pytest.mark.parametrize("name", ["trades", "iad, late", "kdiga, adversarial", "cat", "pgd-at, Rice"])
def test_the_comparison_sees_a_forward_that_batchnorm_alone_needs(name, merge):
    case = CASES[name]
    config = case.config(replace(OFF, merge=merge))
    method = config.table.at(70)
    for number in range(len(method.forwards)):
        rest = (*method.forwards[:number], *method.forwards[number + 1 :])
        if method.forwards[number] not in rest:
            continue
        networks = start_networks(case, *SMALL)
        step = TrainingStep(config, replace(method, forwards=rest), networks)
        for index, (images, labels) in enumerate(batches(SMALL[1])):
            step.train_on(Batch(images, labels), index)
        assert distance(networks, literal(name, *SMALL)[0]) > 1e-7


def test_a_moving_target_moves_in_train_mode_too():
    case = Case("adaad", literal={"attack_batch_norm": "train"}, attack={"batchnorm": "train"})
    ours = start_networks(case, *SMALL)
    theirs = copy.deepcopy(ours)
    engine_run(case, ours, SMALL[1], OFF)
    literal_run(case, theirs, SMALL[1])
    assert distance(ours, {role: one.state_dict() for role, one in theirs.items()}) < 1e-10


def test_rates_fall_as_the_learning_rate_does():
    """MTARD's weights move, and at the milestones by a tenth."""
    case = replace(
        CASES["mtard, fast and scaled"],
        literal={"scale": 10.0, "eta": 0.5, "eta_milestones": (1, 2)}, epochs=(0, 1, 2),
    )  # fmt: skip
    rates = (0.1, 0.01, 0.001)
    ours = start_networks(case, *SMALL)
    theirs = copy.deepcopy(ours)
    step, _ = engine_run(case, ours, SMALL[1], ON, rates)
    results = literal_run(case, theirs, SMALL[1], rates)
    assert distance(ours, {role: one.state_dict() for role, one in theirs.items()}) < 1e-10
    weights = [result["nat_weight"] for result in results]
    assert step.balance.state["weight"].item() == pytest.approx(weights[-1], rel=1e-12)
    assert weights[0] == 0.5
    moved = [abs(after - before) for before, after in pairwise(weights)]
    assert moved[0] > 1e-4
    assert 0 < moved[1] < moved[0]
    assert results[-1]["adv_weight"] + results[-1]["nat_weight"] == pytest.approx(1)
    unslowed, _ = engine_run(case, start_networks(case, *SMALL), SMALL[1], ON)
    assert abs(unslowed.balance.state["weight"].item() - weights[-1]) > 1e-4


def test_weighted_values_of_terms_are_the_literal_ones():
    expected = {
        "trades": lambda one: (one["clean_ce"], 6 * one["self_kl"]),
        "ard, both terms": lambda one: (0.7 * 900 * one["teacher_kl"], 0.3 * one["clean_ce"]),
        "iad-ii, softened": lambda one: (
            0.25 * one["adv_ce"], one["natural_teacher_kl"], 2 * one["teacher_kl"], 2 * one["self_kl"]
        ),
        "kdiga, strong": lambda one: (
            0.3 * one["teacher_kl"], 0.7 * one["clean_ce"], 5 * one["gradient_distance"]
        ),
    }  # fmt: skip
    for name, values in expected.items():
        case = CASES[name]
        _, results = engine_run(case, start_networks(case, *SMALL), SMALL[1], ON)
        for ours, theirs in zip(results, literal(name, *SMALL)[1], strict=True):
            assert ours.losses.tolist() == pytest.approx(values(theirs), rel=1e-11), name
