"""Training steps by Triton's kernels, with all switches on: as near to float64 as by PyTorch's operators."""

from dataclasses import fields, replace

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig, TrainConfig
from fastpeer.data.stream import Batch
from fastpeer.kernels.choice import torch_kernels, triton_kernels
from fastpeer.methods import loss_settings, method_names
from fastpeer.models.resnet import BasicBlock, ResNet
from fastpeer.step.step import TrainingStep

BATCH, SIZE, CLASSES = 4, 8, 10
PARTS = [part.name for part in fields(EngineConfig)]
NONE = EngineConfig(**dict.fromkeys(PARTS, "off"))
# Twice differentiated without a loss scale, plain operators overflow in float16.
OVERFLOWING = ("kdiga",)


@pytest.fixture
def engine(monkeypatch, device):
    """All parts but those that compile or capture."""
    if device.type == "cpu":
        # Interpreted, folding takes most of the time, and it has tests of its own.
        kernels = replace(triton_kernels(), fold=torch_kernels().fold)
        monkeypatch.setattr("fastpeer.step.options.triton_kernels", lambda: kernels)
        monkeypatch.setattr("fastpeer.step.options._obstacle", lambda *_: "")
    parts = dict.fromkeys(PARTS, "on")
    return EngineConfig(**{**parts, **dict.fromkeys(("compile", "graph", "streams"), "off")})


def network(dtype, device):
    """Return two blocks, the second at stride 2 with a projection: convolutions of all kinds."""
    made = ResNet(BasicBlock, 16, (16, 32), (1, 1), CLASSES)
    return made.to(device, dtype, memory_format=torch.channels_last)


def networks(table, dtype, device):
    made = {}
    for seed, role in enumerate((*table.trained, *table.frozen)):
        torch.manual_seed(seed)
        made[role] = network(dtype, device)
        if role in table.frozen:
            made[role].eval().requires_grad_(False)
    return made


def batch_of(seed, dtype, device):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=random).to(dtype) / 255
    labels = torch.randint(0, CLASSES, (BATCH,), generator=random)
    return Batch(images.to(device, memory_format=torch.channels_last), labels.to(device))


def gradients(method, engine, precision, device, seed):
    """Return the gradients of all weights in a step, (weights,) in float64."""
    config = Config(
        method=method, loss=loss_settings(method)(), attack=AttackConfig(steps=1), engine=engine,
        precision=precision, train=TrainConfig(batch_size=BATCH),
    )  # fmt: skip
    dtype = torch.float64 if precision == "fp64" else torch.float32
    table = config.table.at(0)
    ours = networks(table, dtype, device)
    step = TrainingStep(config, table, ours)
    assert not step.options.refused
    step.train_on(batch_of(seed, dtype, device), 0)
    weights = [weight for role in table.trained for weight in ours[role].parameters()]
    return torch.cat([weight.grad.double().flatten() for weight in weights])


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name == "peeraid" else pytest.mark.soak)
        for name in method_names()
        if name not in OVERFLOWING
    ],
)
def test_gradients_are_as_exact_as_by_plain_operators(method, device, engine):
    # Where rounding turns the sign of a pixel's gradient, the pixel goes the other way: a batch says little.
    seeds = range(1 if method == "peeraid" else 5)
    off = {"own": 0.0, "plain": 0.0}
    for seed in seeds:
        truth = gradients(method, NONE, "fp64", device, seed)
        # Triton's interpreter multiplies no matrices of bfloat16.
        for name, how in (("own", engine), ("plain", NONE)):
            off[name] += float((gradients(method, how, "fp16", device, seed) - truth).norm() / truth.norm())
    assert off["own"] <= 2 * off["plain"]


@pytest.mark.soak
@pytest.mark.parametrize("method", OVERFLOWING)
def test_gradients_are_exact(method, device, engine):
    truth = gradients(method, NONE, "fp64", device, 0)
    assert (gradients(method, engine, "fp16", device, 0) - truth).norm() < 0.1 * truth.norm()
