"""Frozen parameters keep every bit, and the others train as beside parameters without a gradient."""

import copy
from dataclasses import replace

import pytest
import torch

from fastpeer.config import AttackConfig, Config, OptimConfig
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.step.optimizer import freeze
from fastpeer.step.step import TrainingStep
from tests.literal.peeraid import Settings
from tests.step.test_released_step import (
    ENGINES,
    SLOW,
    assert_same,
    batches,
    config_for,
    engine_run,
    literal_run,
    networks,
)

PATTERNS = ("student.conv1*", "student.layer1.*", "peer.*bn?.*")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(engine, id=name, marks=pytest.mark.soak if name in (*SLOW, "all") else ())
        for name, engine in ENGINES.items()
    ],
)
def test_frozen_parameters_are_those_without_a_gradient_in_plain_pytorch(engine):
    literal = Settings()
    ours = networks("resnet8", 10)
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
    freeze(theirs, PATTERNS)
    config = config_for(literal, engine=engine)
    data = batches(10, 16, count=2, tail=3)
    engine_run(ours, replace(config, optim=replace(config.optim, freeze=PATTERNS)), data)
    literal_run(theirs, literal, data)
    assert_same(ours, theirs)
    for role, network in ours.items():
        own = dict(before[role].named_parameters())
        frozen = [name for name, value in network.named_parameters() if torch.equal(value, own[name])]
        assert frozen == [name for name, value in theirs[role].named_parameters() if not value.requires_grad]
        assert 0 < len(frozen) < len(own)


def step(*patterns):
    config = Config(optim=OptimConfig(freeze=patterns), attack=AttackConfig(steps=1), precision="fp64")
    return TrainingStep(config, config.table, networks("resnet8", 10))


def test_the_optimizer_holds_no_frozen_parameter_and_the_log_tells_their_number():
    made = step("student.*weight")
    student = made.networks["student"]
    held = {id(weight) for group in made.optimizer.param_groups for weight in group["params"]}
    weights = [one for name, one in student.named_parameters() if name.endswith("weight")]
    assert not held & {id(weight) for weight in weights}
    frozen, every = sum(one.numel() for one in weights), sum(one.numel() for one in student.parameters())
    tensors = f"{len(weights)} of {len(list(student.parameters()))} tensors"
    assert f"frozen: {frozen:,} of {every:,} parameters of the student, in {tensors}" in made.describe()
    assert not any("frozen" in line for line in step().describe())


def test_statistics_of_frozen_norms_still_move():
    made = step("student.[!l]*")
    student = made.networks["student"]
    before = copy.deepcopy(student.state_dict())
    images, labels = batches(10, 16, count=1)[0]
    made.train_on(Batch(images, labels), 0)
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert {"bn1.running_mean", "bn1.running_var"} <= moved
    assert not {"conv1.weight", "bn1.weight", "bn1.bias"} & moved


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("student.layer9.*",),
            r"no parameter matches 'student.layer9.\*'; did you mean .*student.layer1.\*",
        ),
        (("student.conv1",), r"no parameter matches 'student.conv1'; did you mean student\.conv1\.\*"),
        (("teacher.*",), r"no parameter matches 'teacher.\*'; did you mean"),
        (("student.*",), "must leave some parameters of the student to train"),
        (("*",), "must leave some parameters of the peer to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_one_line(patterns, message):
    with pytest.raises(UserError, match=message) as refusal:
        step(*patterns)
    assert str(refusal.value).startswith("--optim.freeze")
    assert "\n" not in str(refusal.value)


def test_a_normalisation_in_front_changes_no_names():
    network = build_model("resnet8", 10, mean=(0.5,), std=(0.25,))
    freeze({"student": network}, ("student.conv1.weight",))
    assert [name for name, one in network.named_parameters() if not one.requires_grad] == [
        "network.conv1.weight"
    ]
