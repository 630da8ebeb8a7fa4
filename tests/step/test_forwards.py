"""Which forwards run as one batch, and that their logits are those of one after another."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.methods import build_table, loss_settings, method_names
from fastpeer.methods.table import Forward
from fastpeer.models import build_model
from fastpeer.step.forwards import Differentiated, Forwards, Pass, group_into_passes
from fastpeer.step.loss import learning_forwards
from fastpeer.step.options import Options
from fastpeer.step.precision import number_format
from fastpeer.step.split_batchnorm import batchnorms
from fastpeer.step.step import TrainingStep
from fastpeer.training.log import Interval

PEER, ADV, CLEAN = (
    Forward("peer", "adversarial"),
    Forward("student", "adversarial"),
    Forward("student", "clean"),
)
ALL = Differentiated({PEER, ADV, CLEAN})


def split(forwards, differentiated=ALL, merge=True, unsplit=()):
    return [
        (one.forwards, one.updates) for one in group_into_passes(forwards, differentiated, merge, unsplit)
    ]


def test_neighbours_of_one_network_are_merged_on_demand():
    forwards = (PEER, ADV, ADV, CLEAN)
    assert split(forwards) == [((PEER,), (0,)), ((ADV, CLEAN), (0, 0, 1))]
    assert split(forwards, merge=False) == [((PEER,), (0,)), ((ADV,), (0, 0)), ((CLEAN,), (0,))]


def test_forwards_that_are_no_neighbours_keep_their_order():
    forwards = (ADV, PEER, CLEAN)
    assert split(forwards) == [((one,), (0,)) for one in forwards]


def test_a_forward_that_comes_again_is_seen_again_in_its_place():
    assert split((CLEAN, ADV, CLEAN)) == [((CLEAN, ADV), (0, 1, 0))]
    assert split((CLEAN, ADV, CLEAN), merge=False) == [((CLEAN,), (0,)), ((ADV,), (0,)), ((CLEAN,), (0,))]


def test_each_forward_has_its_gradient_from_the_first_time():
    for merge, unsplit in ((False, ()), (True, ("student",)), (False, ("student",))):
        passes = group_into_passes((CLEAN, ADV, CLEAN), ALL, merge, unsplit)
        assert passes == [Pass((CLEAN,), (0,), True), Pass((ADV,), (0,), True), Pass((CLEAN,), (0,), False)]


def test_a_network_without_split_batchnorm_runs_each_time():
    assert split((PEER, PEER, ADV, ADV, CLEAN), unsplit=("student",)) == [
        ((PEER,), (0, 0)), ((ADV,), (0,)), ((ADV,), (0,)), ((CLEAN,), (0,))
    ]  # fmt: skip


def test_what_learns_and_what_does_not_are_not_merged():
    assert split((ADV, CLEAN), Differentiated({ADV})) == [((ADV,), (0,)), ((CLEAN,), (0,))]
    assert [one.learns for one in group_into_passes((ADV, CLEAN), Differentiated({ADV}), True, ())] == [
        True,
        False,
    ]
    assert split((ADV, CLEAN), Differentiated(())) == [((ADV, CLEAN), (0, 1))]


def test_what_is_differentiated_twice_is_not_merged():
    differentiated = Differentiated({ADV, CLEAN}, {CLEAN})
    assert group_into_passes((ADV, CLEAN, CLEAN), differentiated, True, ()) == [
        Pass((ADV,), (0,), True), Pass((CLEAN,), (0, 0), True, differentiated_twice=True)
    ]  # fmt: skip
    assert [one.forwards for one in group_into_passes((CLEAN, ADV), differentiated, True, ())] == [
        (CLEAN,),
        (ADV,),
    ]


@pytest.fixture
def pair():
    networks = {}
    for seed, role in enumerate(("student", "peer")):
        torch.manual_seed(seed)
        networks[role] = build_model("resnet8", 5).double()
    return networks


def pictures():
    random = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(4, 3, 16, 16, generator=random).double()
        for name in ("adversarial", "clean", "peer_adversarial")
    }


def plain(forwards, networks, inputs):
    """Run every forward as often as it stands there; return the first logits of each, with their graph."""
    found = {}
    for forward in forwards:
        logits = networks[forward.network](inputs[forward.images])
        found.setdefault(forward, logits)
    return list(found.values())


def assert_same_states(ours, theirs):
    for role in ours:
        torch.testing.assert_close(ours[role].state_dict(), theirs[role].state_dict(), rtol=0, atol=1e-12)


SEQUENCES = [
    (PEER, ADV, ADV, CLEAN), (CLEAN, ADV, ADV, PEER), (ADV, ADV), (CLEAN, ADV, CLEAN),
    (CLEAN, ADV, PEER, CLEAN), (ADV, CLEAN, ADV, CLEAN, CLEAN), (PEER, CLEAN, PEER, ADV, CLEAN, PEER),
]  # fmt: skip


class Own(nn.BatchNorm2d):
    """Of a derived class, which cannot be split."""


def with_own_batchnorm(network):
    for norm in batchnorms(network):
        norm.__class__ = Own
    return network


@pytest.mark.parametrize("kind", ["merged", "unmerged", "unsplit"])
@pytest.mark.parametrize("forwards", SEQUENCES)
def test_passes_give_logits_gradients_and_statistics_of_one_forward_after_another(pair, forwards, kind):
    inputs, others = pictures(), copy.deepcopy(pair)
    if kind == "unsplit":
        pair = {role: with_own_batchnorm(network) for role, network in pair.items()}
    passes = Forwards(forwards, ALL, pair, number_format("fp64"), Options(merge=kind != "unmerged"), None)
    for _ in range(2):
        ours, theirs = passes.run(inputs), plain(forwards, others, inputs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert_same_states(pair, others)
    for logits in (ours, theirs):
        torch.autograd.backward(logits, [one.detach() for one in theirs])
    for role in {forward.network for forward in forwards}:
        gradients = [[one.grad for one in networks[role].parameters()] for networks in (pair, others)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
    for norm in [norm for network in pair.values() for norm in batchnorms(network)]:
        assert getattr(norm, "updates", (0,)) == (0,)


@pytest.mark.parametrize("merge", [True, False])
def test_forwards_that_nothing_learns_from_leave_no_graph(pair, merge):
    forwards, differentiated = (PEER, ADV, CLEAN), Differentiated({ADV})
    passes = Forwards(forwards, differentiated, pair, number_format("fp64"), Options(merge=merge), None)
    assert [one.requires_grad for one in passes.run(pictures())] == [False, True, False]
    with torch.no_grad():
        assert not any(one.requires_grad for one in passes.run(pictures()))


@pytest.mark.parametrize("merge", [True, False])
def test_the_gradient_survives_where_a_forward_comes_again(pair, merge):
    differentiated = Differentiated({CLEAN, ADV})
    passes = Forwards(
        (CLEAN, ADV, CLEAN), differentiated, pair, number_format("fp64"), Options(merge=merge), None
    )
    assert [one.requires_grad for one in passes.run(pictures())] == [True, True]


@pytest.mark.parametrize("merge", [True, False])
def test_a_pass_for_the_statistics_alone_leaves_the_gradient_of_one_before_it(pair, merge):
    forwards, differentiated, inputs = (ADV, CLEAN, ADV, CLEAN), Differentiated({ADV}), pictures()
    others = copy.deepcopy(pair)
    passes = Forwards(forwards, differentiated, pair, number_format("fp64"), Options(merge=merge), None)
    ours, theirs = passes.run(inputs), plain(forwards, others, inputs)
    for logits in (ours, theirs):
        logits[0].square().sum().backward()
    assert_same_states(pair, others)
    gradients = [[one.grad for one in networks["student"].parameters()] for networks in (pair, others)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_the_twice_differentiated_pass_is_not_compiled_and_others_are(pair):
    regions = []

    def compiler(function, name):
        regions.append(name)
        return function

    options = Options(merge=True, compile=True)
    differentiated = Differentiated({ADV, CLEAN, PEER}, {CLEAN})
    inputs = pictures()
    leaf = inputs["clean"].requires_grad_()
    others = copy.deepcopy(pair)
    forwards = (PEER, ADV, CLEAN, CLEAN)
    passes = Forwards(forwards, differentiated, pair, number_format("fp64"), options, compiler)
    ours = passes.run(inputs)
    assert regions == ["training peer and student"]
    gradient = torch.autograd.grad(ours[2].square().sum(), leaf, create_graph=True)[0]
    gradient.square().sum().backward()
    theirs = plain(forwards, others, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert_same_states(pair, others)
    expected = torch.autograd.grad(theirs[2].square().sum(), leaf, create_graph=True)[0]
    expected.square().sum().backward()
    weights = [[one.grad for one in networks["student"].parameters()] for networks in (pair, others)]
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


TABLES = {
    f"{name} {epoch}": (name, epoch)
    for name in method_names() for epoch in ((0, 100) if name.startswith("iad") else (0,))
}  # fmt: skip


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("table", TABLES)
def test_every_methods_forwards_run_as_one_after_another(pair, table, merge):
    name, epoch = TABLES[table]
    method = build_table(name, loss_settings(name)()).at(epoch)
    others, inputs = copy.deepcopy(pair), pictures()
    differentiated = Differentiated(learning_forwards(method))
    ours = Forwards(
        method.forwards, differentiated, pair, number_format("fp64"), Options(merge=merge), None
    ).run(inputs)
    torch.testing.assert_close(ours, plain(method.forwards, others, inputs), rtol=0, atol=1e-12)
    assert_same_states(pair, others)


def batch():
    random = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, 3, 16, 16, generator=random), torch.tensor([0, 1, 2, 3]))


def test_nonfinite_gradients_of_the_attack_are_counted_and_move_nothing(pair, monkeypatch):
    config = Config(attack=AttackConfig(steps=1, start_std=0), engine=EngineConfig(chain="off"))
    step = TrainingStep(config, config.table, {name: one.float() for name, one in pair.items()})
    broken = torch.full((4, 3, 16, 16), torch.nan)
    broken[0] = 1.0
    monkeypatch.setattr(step.predictions.victims["student"], "input_gradient", lambda images, target: broken)
    count = torch.zeros(1, dtype=torch.int64)
    images = batch().images
    found = step.adversarial(images, batch().labels, count)["adversarial"]
    assert count.item() == 3 * 3 * 16 * 16
    assert torch.equal(found[1:], images[1:])
    assert not torch.equal(found[0], images[0])


def test_faults_appear_in_the_log_and_only_then(pair):
    config = Config(attack=AttackConfig(steps=1))
    step = TrainingStep(config, config.table, {name: one.float() for name, one in pair.items()})
    interval = Interval.of(step)
    # lambda1 is 0.
    assert interval.terms == ["peer_ce", "peer_kl_student", "student_kl_peer", "student_kl_clean"]
    assert interval.forwards == ["peer_adversarial", "student_adversarial", "student_clean"]
    result = step.train_on(batch(), 0)
    interval.add(result, 4)
    assert not {"nonfinite_gradients", "skipped_steps"} & interval.record().keys()
    one = torch.ones(1, dtype=torch.int64)
    interval.add(result._replace(nonfinite_gradients=7 * one, skipped=one), 4)
    state = interval.state()
    record = interval.record()
    assert (record["nonfinite_gradients"], record["skipped_steps"]) == (7, 1)
    interval.load_state(state)
    assert interval.record()["nonfinite_gradients"] == 7


def test_an_fp16_step_whose_gradients_overflow_is_counted_and_changes_no_weight(pair):
    config = Config(precision="fp16", attack=AttackConfig(steps=0), engine=EngineConfig(merge="on"))
    pair = {name: one.float() for name, one in pair.items()}
    step = TrainingStep(config, config.table, pair)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(dict(pair["student"].named_parameters()))
    result = step.train_on(batch(), 0)
    assert result.skipped.item() == 1
    torch.testing.assert_close(dict(pair["student"].named_parameters()), before, rtol=0, atol=0)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert step.train_on(batch(), 1).skipped.item() == 0


def test_the_learning_rate_may_change_between_steps_and_outlives_a_checkpoint(pair):
    config = Config(precision="fp64", attack=AttackConfig(steps=0))
    step = TrainingStep(config, config.table, pair)
    step.set_learning_rate(0.0)
    state = copy.deepcopy(step.optimizer.state_dict())
    before = copy.deepcopy(dict(pair["student"].named_parameters()))
    images = batch()
    step.train_on(replace(images, images=images.images.double()), 0)
    torch.testing.assert_close(dict(pair["student"].named_parameters()), before, rtol=0, atol=0)
    rate = step.optimizer.param_groups[0]["lr"]
    step.load_optimizer(state)
    assert all(group["lr"] is rate for group in step.optimizer.param_groups)


def test_kernels_for_batchnorm_run_where_the_gradient_is_taken_once(pair):
    differentiated = Differentiated({PEER, ADV, CLEAN}, {CLEAN})
    options = Options(merge=True, batchnorm=True)
    passes = Forwards((PEER, ADV, CLEAN), differentiated, pair, number_format("fp64"), options, None)
    seen = []
    for role, network in pair.items():
        network.conv1.register_forward_hook(
            lambda *_, role=role, norm=network.bn1: seen.append((role, norm.kernels is not None))
        )
    passes.run(pictures())
    assert seen == [("peer", True), ("student", True), ("student", False)]
    assert all(norm.kernels is None for network in pair.values() for norm in batchnorms(network))
