"""Recording and replaying, with a recorder that needs no GPU: it runs the function again."""

import copy

import pytest
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import label_pgd
from fastpeer.kernels.choice import torch_kernels
from fastpeer.models import build_model
from fastpeer.step.graph import WARM_UP_RUNS, Captured, snapshot_state
from fastpeer.step.precision import number_format
from fastpeer.step.step import TrainingStep
from fastpeer.training.averaging import AveragedStudent
from fastpeer.victims.autograd import AutogradVictim

pytestmark = pytest.mark.usefixtures("nothing_logged")


class Rerunner:
    """Does what a graph does: fills the recorded results anew, from the recorded inputs."""

    def __init__(self):
        self.warmed_up = self.replayed = 0

    def warm_up(self, function):
        for _ in range(WARM_UP_RUNS):
            function()
        self.warmed_up += 1

    def record(self, function):
        results = []

        def replay():
            fresh = function()
            if results:
                old = results[0]
                pairs = [(old, fresh)] if isinstance(fresh, torch.Tensor) else zip(old, fresh, strict=True)
                for one, new in pairs:
                    one.copy_(new)
            else:
                results.append(fresh)
            self.replayed += 1

        return _Later(results), replay


class _Later:
    """A graph's results have no values before its first replay."""

    def __init__(self, results):
        self.results = results

    def __iter__(self):
        return iter(self.results[0])

    def cpu(self):
        return self.results[0].clone()


def nothing():
    return lambda: None


def test_each_shape_is_recorded_once_and_replayed_on_what_comes():
    recorder = Rerunner()
    captured = Captured(lambda x: (2 * x,), recorder, nothing)
    for size in (4, 4, 3, 4, 3):
        x = torch.rand(size)
        assert torch.equal(next(iter(captured(x))), 2 * x)
    assert (recorder.warmed_up, recorder.replayed) == (2, 5)


def test_shapes_that_come_seldom_are_not_recorded():
    recorder = Rerunner()
    captured = Captured(lambda x: (2 * x,), recorder, nothing, patience=2)
    for size in (4, 4, 3, 4, 3, 4):
        x = torch.rand(size)
        assert torch.equal(next(iter(captured(x))), 2 * x)
    assert (recorder.warmed_up, recorder.replayed) == (1, 2)


def test_warm_up_leaves_no_trace():
    total = torch.zeros(1)

    def snapshot():
        kept = total.clone()
        return lambda: total.copy_(kept)

    captured = Captured(lambda x: (total.add_(x),), Rerunner(), snapshot)
    for _ in range(3):
        captured(torch.ones(1))
    assert total.item() == 3


class Refuser(Rerunner):
    def record(self, function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")


def test_what_cannot_be_captured_runs_uncaptured_with_one_warning(logged):
    total = torch.zeros(1)

    def snapshot():
        kept = total.clone()
        return lambda: total.copy_(kept)

    captured = Captured(lambda x: (total.add_(x),), Refuser(), snapshot)
    for _ in range(3):
        captured(torch.ones(1))
        captured(torch.ones(2)[:1].clone())
    assert total.item() == 6
    assert len(logged) == 1
    assert logged[0].startswith("engine.graph: the step runs uncaptured (operation not permitted")


def test_without_the_memory_to_record_what_was_recorded_is_given_back(logged):
    class Full(Rerunner):
        def warm_up(self, function):
            if self.warmed_up:
                raise torch.OutOfMemoryError("out of memory")
            super().warm_up(function)

    captured = Captured(lambda x: (2 * x,), Full(), nothing)
    for size in (4, 3, 4):
        x = torch.rand(size)
        assert torch.equal(next(iter(captured(x))), 2 * x)
    assert logged == ["engine.graph: the step runs uncaptured (out of memory)"]
    assert not captured._recorded


def test_memory_that_runs_out_without_recording_is_the_callers(logged):
    def fail(x):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Captured(fail, Rerunner(), nothing)(torch.ones(1))
    assert len(logged) == 1


def batches():
    random = torch.Generator().manual_seed(0)
    for size in (4, 4, 2, 4, 2):
        images = torch.rand(size, 3, 16, 16, generator=random).to(memory_format=torch.channels_last)
        yield Batch(images, torch.randint(0, 5, (size,), generator=random))


def make(method):
    """Build a step of a method, at the last of its tables."""
    config = Config(method=method, engine=EngineConfig(merge="on"), attack=AttackConfig(steps=2))
    table = config.table.at(1000)
    networks = {}
    for seed, role in enumerate((*table.trained, *table.frozen)):
        torch.manual_seed(seed)
        networks[role] = build_model("resnet8", 5)
        if role in table.frozen:
            networks[role].eval().requires_grad_(False)
    return networks, TrainingStep(config, table, networks)


def run(method, capture):
    networks, step = make(method)
    if capture:
        step._program = Captured(step.run, Rerunner(), step.snapshot)
    results = []
    for number, batch in enumerate(batches()):
        step.set_learning_rate(0.1 / (1 + number))
        results.append(copy.deepcopy(tuple(step.train_on(batch, number))))
    return networks, step, results


@pytest.mark.parametrize(
    "method",
    [
        "peeraid",
        "mtard",
        "cat",
        "kdiga",
        *(pytest.param(method, marks=pytest.mark.soak) for method in ("iad", "adaad")),
    ],
)
def test_a_captured_step_trains_as_an_uncaptured_one(method):
    networks, step, results = run(method, capture=False)
    others, other_step, other_results = run(method, capture=True)
    for role in networks:
        torch.testing.assert_close(networks[role].state_dict(), others[role].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(results, other_results, rtol=0, atol=0)
    torch.testing.assert_close(step.balance.state, other_step.balance.state, rtol=0, atol=0)
    assert ("weight" in step.balance.state) == (method == "mtard")
    momenta = [one["momentum_buffer"] for one in step.optimizer.state.values()]
    other_momenta = [one["momentum_buffer"] for one in other_step.optimizer.state.values()]
    torch.testing.assert_close(momenta, other_momenta, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["mtard", "cat", "peeraid"])
def test_a_step_that_is_taken_back_is_done_again_to_the_same_end(method):
    networks, step = make(method)
    first, second, *_ = batches()
    tensors = dict(step.balance.state)
    for number, batch in enumerate((first, second)):
        begun = copy.deepcopy(step.balance.state)
        restore = step.snapshot()
        ends = []
        for _ in range(2):
            result = copy.deepcopy(tuple(step.train_on(batch, number)))
            weights = copy.deepcopy([network.state_dict() for network in networks.values()])
            ends.append((result, weights, copy.deepcopy(step.balance.state)))
            restore()
            torch.testing.assert_close(step.balance.state, begun, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(*ends, rtol=0, atol=0)
        step.train_on(batch, number)
    assert all(step.balance.state[name] is one for name, one in tensors.items())
    if method == "mtard":
        assert step.balance.state["weight"] != 0.5
        assert step.balance.state["first"].isfinite().all()


def test_an_averaged_students_captured_pass_measures_the_same_statistics():
    torch.manual_seed(0)
    student = build_model("resnet8", 5)
    numbers = number_format("fp32")
    plain = AveragedStudent(student, numbers)
    recorder = Rerunner()
    recorded = AveragedStudent(
        student, numbers, lambda function, what: Captured(function, recorder, nothing, what)
    )
    for average in (plain, recorded):
        for _ in range(2):
            average.collect(student)
            average.reestimate(batches())
    torch.testing.assert_close(plain.network.state_dict(), recorded.network.state_dict(), rtol=0, atol=0)
    assert recorder.warmed_up == 2
    assert plain.network.bn1.num_batches_tracked == 5


class Networks(nn.Module):
    """Two networks, of which an evaluation attacks the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student, self.peer = (build_model("resnet8", 5) for _ in range(2))


def test_a_captured_evaluation_judges_as_an_uncaptured_one():
    networks = Networks()
    victim = AutogradVictim(networks.student, torch_kernels())
    attack = label_pgd(victim, torch_kernels(), 0.05, 0.02, steps=2, seed=0)
    named = dict(networks.named_children())
    recorder = Rerunner()
    expected = Evaluator(named, attack).correct(batches())
    evaluator = Evaluator(named, attack, record=lambda run: Captured(run, recorder, nothing))
    for _ in range(2):
        found = evaluator.correct(batches())
        assert all(torch.equal(found[name], expected[name]) for name in named)
    assert recorder.warmed_up == 2
    assert recorder.replayed == 10
    # What is changed in place counts at once.
    with torch.no_grad():
        networks.peer.linear.weight.zero_()
        networks.peer.linear.bias.copy_(torch.arange(5.0))
    changed = evaluator.correct(batches())["peer"]
    assert torch.equal(changed, torch.cat([batch.labels for batch in batches()]) == 4)


def test_state_comes_back_into_the_same_memory():
    network = build_model("resnet8", 5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scaler.scale(torch.ones(()))
    tensors = network.state_dict(keep_vars=True)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict(), scaler.state_dict()))
    other = torch.full((2,), torch.nan)
    restore = snapshot_state([network], [other], optimizer, scaler)
    other.fill_(1.0)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scaler.update(4.0)
    restore()
    after = (network.state_dict(), optimizer.state_dict(), scaler.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert other.isnan().all()
    assert all(network.state_dict(keep_vars=True)[name] is one for name, one in tensors.items())
