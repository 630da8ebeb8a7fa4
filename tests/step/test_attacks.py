"""Attacks on networks as they are: modes, and weights that want no gradient."""

import copy

import pytest
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.methods import default_loss
from fastpeer.methods.table import Attack, CrossEntropy, Forward, Method
from fastpeer.models import build_model
from fastpeer.step.step import TrainingStep

pytestmark = pytest.mark.usefixtures("nothing_logged")

OFF = EngineConfig(fold="off", chain="off", merge="off", compile="off")
ON = EngineConfig(fold="on", chain="on", merge="on", compile="off")


def networks(*roles):
    found = {}
    for seed, role in enumerate(roles):
        torch.manual_seed(seed)
        found[role] = build_model("resnet8", 5).double()
    return found


def trained_once(config, method, pair):
    step = TrainingStep(config, method, pair)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    step.train_on(Batch(images, torch.arange(4)), 0)
    return pair


def test_a_peer_that_an_attack_leads_away_from_is_in_eval_mode_there():
    student, peer = Forward("student", "adversarial"), Forward("peer", "adversarial")
    method = Method(
        trained=("student", "peer"), forwards=(student, peer),
        terms={"s": CrossEntropy(student, 1.0), "p": CrossEntropy(peer, 1.0)},
        attacks={"adversarial": Attack("student", away_from=peer, start="uniform")},
    )  # fmt: skip
    start = networks("student", "peer")
    attack = AttackConfig(steps=3)
    folded, live = (
        trained_once(Config(precision="fp64", engine=engine, attack=attack), method, copy.deepcopy(start))
        for engine in (ON, OFF)
    )
    for role in start:
        torch.testing.assert_close(folded[role].state_dict(), live[role].state_dict(), rtol=0, atol=1e-10)
    assert live["peer"].bn1.num_batches_tracked == 1
    assert live["peer"].training


def test_weights_that_want_no_gradient_stay_as_they_are():
    pair = networks("student", "teacher")
    pair["teacher"].eval().requires_grad_(False)
    pair["student"].fixed = nn.Parameter(torch.ones(2).double(), requires_grad=False)
    pair["student"].linear.bias.requires_grad_(False)
    before = copy.deepcopy(pair["student"])
    config = Config(method="kdiga", loss=default_loss("kdiga"), precision="fp64")
    trained_once(config, config.table, pair)
    assert torch.equal(pair["student"].linear.bias, before.linear.bias)
    assert not torch.equal(pair["student"].conv1.weight, before.conv1.weight)
