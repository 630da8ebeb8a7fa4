"""Which forwards run as one batch, and that their logits are those of one after another."""

import copy
from dataclasses import replace

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.engine.interval import Interval
from fastpeer.engine.passes import Passes, group
from fastpeer.engine.plan import Plan
from fastpeer.engine.precision import number_format
from fastpeer.engine.step import TrainingStep
from fastpeer.methods import build_method
from fastpeer.methods.table import Forward
from fastpeer.models import build_model

PEER, TWICE, CLEAN = (
    Forward("peer", "adversarial"), Forward("student", "adversarial", counts=2), Forward("student", "clean")
)  # fmt: skip


def networks_of(kind):
    return [(one.network, one.forwards) for one in kind]


def test_neighbours_of_one_network_are_merged_on_demand():
    forwards = (PEER, TWICE, CLEAN)
    assert networks_of(group(forwards, merge=True)) == [("peer", (PEER,)), ("student", (TWICE, CLEAN))]
    assert [one.forwards for one in group(forwards, merge=False)] == [(one,) for one in forwards]


def test_forwards_that_are_no_neighbours_keep_their_order():
    forwards = (TWICE, PEER, CLEAN)
    assert [one.forwards for one in group(forwards, merge=True)] == [(one,) for one in forwards]


@pytest.fixture
def pair():
    networks = {}
    for seed, role in enumerate(("student", "peer")):
        torch.manual_seed(seed)
        networks[role] = build_model("resnet8", 5).double()
    return networks


@pytest.mark.parametrize("forwards", [(PEER, TWICE, CLEAN), (CLEAN, TWICE, PEER), (TWICE,)])
def test_merged_passes_give_the_same_logits_and_statistics(pair, forwards):
    inputs = {name: torch.rand(4, 3, 16, 16).double() for name in ("adversarial", "clean")}
    others = copy.deepcopy(pair)
    ours = Passes(forwards, pair, number_format("fp64"), Plan(merge=True), pytest.fail)(inputs)
    theirs = Passes(forwards, others, number_format("fp64"), Plan(), pytest.fail)(inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for role in pair:
        torch.testing.assert_close(pair[role].state_dict(), others[role].state_dict(), rtol=0, atol=1e-12)


def batch():
    random = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, 3, 16, 16, generator=random), torch.tensor([0, 1, 2, 3]))


def test_nan_gradients_of_the_attack_are_counted_and_move_nothing(pair, monkeypatch):
    config = Config(attack=AttackConfig(steps=1, start_std=0), engine=EngineConfig(chain="off"))
    step = TrainingStep(config, build_method(config), {name: one.float() for name, one in pair.items()})
    broken = torch.full((4, 3, 16, 16), torch.nan)
    broken[0] = 1.0
    monkeypatch.setattr(step.victims["student"], "input_gradient", lambda images, target: broken)
    count = torch.zeros(1, dtype=torch.int64)
    images = batch().images
    found = step.adversarial(images, step.method.attack, count)
    assert count.item() == 3 * 3 * 16 * 16
    assert torch.equal(found[1:], images[1:])
    assert not torch.equal(found[0], images[0])


def test_faults_appear_in_the_log_and_only_then(pair):
    config = Config(attack=AttackConfig(steps=1))
    step = TrainingStep(config, build_method(config), {name: one.float() for name, one in pair.items()})
    interval = Interval(["a", "b", "c", "d", "e"], ["f", "g", "h"], step.device)
    result = step(batch(), 0)
    interval.add(result, 4)
    assert not {"nan_gradients", "skipped_steps"} & interval.record().keys()
    one = torch.ones(1, dtype=torch.int64)
    interval.add(result._replace(nan_gradients=7 * one, skipped=one), 4)
    state = interval.state()
    record = interval.record()
    assert (record["nan_gradients"], record["skipped_steps"]) == (7, 1)
    interval.load_state(state)
    assert interval.record()["nan_gradients"] == 7


def test_an_fp16_step_whose_gradients_overflow_is_counted_and_changes_no_weight(pair):
    config = Config(precision="fp16", attack=AttackConfig(steps=0), engine=EngineConfig(merge="on"))
    pair = {name: one.float() for name, one in pair.items()}
    step = TrainingStep(config, build_method(config), pair)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(dict(pair["student"].named_parameters()))
    result = step(batch(), 0)
    assert result.skipped.item() == 1
    torch.testing.assert_close(dict(pair["student"].named_parameters()), before, rtol=0, atol=0)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert step(batch(), 1).skipped.item() == 0


def test_the_learning_rate_may_change_between_steps_and_outlives_a_checkpoint(pair):
    config = Config(precision="fp64", attack=AttackConfig(steps=0))
    step = TrainingStep(config, build_method(config), pair)
    step.set_learning_rate(0.0)
    state = copy.deepcopy(step.optimizer.state_dict())
    before = copy.deepcopy(dict(pair["student"].named_parameters()))
    images = batch()
    step(replace(images, images=images.images.double()), 0)
    torch.testing.assert_close(dict(pair["student"].named_parameters()), before, rtol=0, atol=0)
    rate = step.optimizer.param_groups[0]["lr"]
    step.load_optimizer(state)
    assert all(group["lr"] is rate for group in step.optimizer.param_groups)
