"""Who withstands whose adversarial examples: against a literal PGD and plain forwards."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastpeer.config import AttackConfig, Config, LogConfig, ModelConfig, RecordConfig, TrainConfig
from fastpeer.data.counter import generator
from fastpeer.data.dataset import open_dataset
from fastpeer.step.step import TrainingStep
from fastpeer.training.cross_robustness import CrossRobustness
from fastpeer.training.setup import set_up
from fastpeer.training.signals import StopRequest

CONFIG = Config(
    precision="fp64",
    model=ModelConfig(student="resnet8", peer="resnet8"),
    attack=AttackConfig(epsilon=16 / 255, step_size=4 / 255),
    train=TrainConfig(batch_size=8),
    log=LogConfig(to=()),
    record=RecordConfig(cross_robustness=True, images=20, steps=3, every=2),
)


@pytest.fixture(scope="module")
def trained(small_dataset):
    """The setup and step of a run after a few steps, so that the networks differ in what they have learnt."""
    setup = set_up(CONFIG, open_dataset(small_dataset), torch.device("cpu"), {})
    step = TrainingStep(CONFIG, setup.method, setup.all_networks, 8)
    step.set_learning_rate(0.05)
    for number, batch in enumerate(setup.training.epoch(0)):
        step.train_on(batch, number)
    return setup, step


def literal_pgd(network, images, labels, number):
    """Madry et al.'s attack, from a uniform start, written down without the engine."""
    noise = torch.rand(images.shape, generator=generator(images.device, 0, "cross-robustness start", number),
                       dtype=images.dtype)  # fmt: skip
    epsilon, adversarial = 16 / 255, images + 16 / 255 * (2 * noise - 1)
    for _ in range(3):
        leaf = adversarial.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf), labels, reduction="sum"), leaf)
        moved = adversarial + 4 / 255 * gradient.sign()
        adversarial = torch.min(torch.max(moved, images - epsilon), images + epsilon).clamp(0, 1)
    return adversarial


def literal(networks, stream):
    columns = {"clean": None, **{f"on_{name}": network for name, network in networks.items()}}
    right = {name: dict.fromkeys(columns, 0) for name in networks}
    for number, batch in enumerate(stream):
        for column, attacked in columns.items():
            images = batch.images
            if attacked is not None:
                images = literal_pgd(attacked, batch.images, batch.labels, number)
            for name, network in networks.items():
                right[name][column] += int((network(images).argmax(1) == batch.labels).sum())
    return {
        name: {column: 100 * count / len(stream.indices) for column, count in counts.items()}
        for name, counts in right.items()
    }


def test_each_network_on_the_examples_of_each(trained):
    setup, step = trained
    record = CrossRobustness(CONFIG, setup, step, StopRequest())
    found = record.measure()
    networks = {name: setup.networks[name].eval() for name in ("student", "peer")}
    assert {split: len(stream.indices) for split, stream in record.streams.items()} == {"train": 20, "val": 5}
    for split, stream in record.streams.items():
        for name, expected in literal(networks, stream).items():
            assert found[split][name] == pytest.approx(expected)
    assert found["train"]["student"]["clean"] != found["train"]["student"]["on_student"]


def test_epochs_that_end_with_a_record(trained):
    setup, step = trained
    record = CrossRobustness(CONFIG, setup, step, StopRequest())
    assert [epoch for epoch in range(5) if record.is_due(epoch, 5)] == [1, 3, 4]
    off = replace(CONFIG, record=RecordConfig())
    assert not CrossRobustness(off, setup, step, StopRequest()).is_due(4, 5)


def test_the_log_tells_what_it_took(trained, logged):
    setup, step = trained
    CrossRobustness(CONFIG, setup, step, StopRequest()).record(1e9)
    assert "cross-robustness (clean / on student's / on peer's): train student " in logged[-1]
    assert logged[-1].endswith(", 0.0 % of an epoch's steps")
