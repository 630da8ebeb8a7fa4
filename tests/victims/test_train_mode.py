"""The attack in train mode as one compiled region: same gradient, same moves of BatchNorm's statistics."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig, TrainConfig
from fastpeer.data.stream import Batch
from fastpeer.kernels.choice import torch_kernels
from fastpeer.methods import default_loss
from fastpeer.models import build_model
from fastpeer.step.compile import Compiler
from fastpeer.step.split_batchnorm import batchnorms, split_batchnorms
from fastpeer.step.step import TrainingStep
from fastpeer.victims.compiled import CompiledTrainVictim
from fastpeer.victims.factory import VictimFactory
from tests.step.one_layer import OneLayer

pytestmark = pytest.mark.usefixtures("nothing_logged")

CLASSES, BATCH, STEPS = 5, 4, 3


def in_train_mode(network):
    """Prepare a network as a run does; its statistics have moved, and its first layer is frozen."""
    network = network.double().train()
    split_batchnorms(network)
    network(torch.rand(BATCH, 3, 8, 8).double())
    next(network.parameters()).requires_grad_(False)
    return network


@pytest.fixture
def network():
    torch.manual_seed(0)
    return in_train_mode(build_model("resnet8", CLASSES))


@pytest.fixture
def images():
    return torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


LABELS = torch.arange(BATCH)
PROBABILITIES = torch.softmax(torch.randn(BATCH, CLASSES).double(), dim=1)


def victim(network, compiler=None):
    factory = VictimFactory(torch.float64, True, True, compiler, torch_kernels(), nullcontext)
    found = factory.in_train_mode(network, "student")
    assert found is factory.in_train_mode(network, "student")
    return found


def assert_same_after_steps(compiler, network, images, target):
    """Compare gradients and buffers after each of some steps of an attack, compiled and not."""
    plain = copy.deepcopy(network)
    attacked, expected = victim(network, compiler), victim(plain)
    assert isinstance(attacked, CompiledTrainVictim)
    for step in range(STEPS):
        gradients = [one.input_gradient(images + 0.01 * step, target) for one in (attacked, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            dict(network.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=1e-12
        )
    assert {int(norm.num_batches_tracked) for norm in batchnorms(network)} == {1 + STEPS}
    assert all(weight.grad is None for weight in network.parameters())


@pytest.fixture
def without_code_generation(monkeypatch):
    """Compile all but the code of kernels, which takes long: torch.compile's capture in one piece."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager", fullgraph=True))


@pytest.mark.usefixtures("without_code_generation")
def test_the_compiled_attack_moves_statistics_as_the_uncompiled_one_does(images):
    compiler = Compiler(BATCH)
    assert_same_after_steps(compiler, in_train_mode(OneLayer(CLASSES)), images, LABELS)
    assert list(compiler.seconds) == ["the attack on the student in train mode"]


@pytest.mark.usefixtures("without_code_generation")
def test_training_passes_in_between_compile_the_attack_no_second_time(images):
    config = Config(
        method="pgd-at", loss=default_loss("pgd-at"), precision="fp64", engine=EngineConfig(compile="on"),
        attack=AttackConfig(steps=2, batchnorm="train"), train=TrainConfig(batch_size=BATCH),
    )  # fmt: skip
    step = TrainingStep(config, config.table, {"student": OneLayer(CLASSES).double()})
    torch._dynamo.utils.counters.clear()
    for number in range(2):
        step.train_on(Batch(images, LABELS), number)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(step.compiler.seconds) == 2


def test_the_region_computes_the_same_in_a_deeper_network(network, images, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function, dynamic: function)
    assert_same_after_steps(Compiler(BATCH), network, images, PROBABILITIES)


@pytest.mark.soak
@pytest.mark.parametrize("target", [LABELS, PROBABILITIES], ids=["labels", "probabilities"])
def test_kernels_that_inductor_makes_do_so_too(network, images, target):
    compiler = Compiler(BATCH)
    assert_same_after_steps(compiler, network, images, target)
    assert compiler.seconds


def test_no_weight_gets_a_gradient_in_the_region(network, images, monkeypatch):
    # Slow to import.
    from torch.fx.experimental.proxy_tensor import make_fx

    regions = []
    monkeypatch.setattr("torch.compile", lambda function, dynamic: regions.append(function) or function)
    victim(network, Compiler(BATCH))
    with torch.no_grad():
        graph = make_fx(regions[0])(images, LABELS).graph
    masks = [
        node.args[-1] for node in graph.nodes if node.target is torch.ops.aten.convolution_backward.default
    ]
    assert masks == [[True, False, False]] * 9


@pytest.fixture
def without_a_compiler(monkeypatch):
    """Let what is compiled fail when it is called."""

    def fast(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("torch.compile", lambda function, dynamic: fast)


@pytest.mark.usefixtures("without_a_compiler")
def test_another_batch_size_runs_uncompiled(network, images):
    assert_same_after_steps(Compiler(BATCH + 1), network, images, PROBABILITIES)


@pytest.mark.usefixtures("without_a_compiler")
def test_where_compiling_fails_the_attack_runs_as_it_is_after_one_line(network, images, logged):
    assert_same_after_steps(Compiler(BATCH), network, images, LABELS)
    assert logged == [
        "engine.compile: the attack on the student in train mode runs uncompiled (no such kernel)"
    ]
