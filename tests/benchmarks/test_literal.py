"""PeerAiD's literal step as the benchmarks measure it, the authors' own code, and the cases of both."""

import copy
from pathlib import Path

import pytest
import torch

from benchmarks.steps.cases import Case, cases, random_batches, trained_networks
from benchmarks.steps.literal import LiteralStep, literal_step
from benchmarks.steps.released import ReleasedCode
from fastpeer.errors import UserError
from tests.literal.peeraid import Settings, training_step

# PyTorch warns that "mean" is not the mathematical KL; it is what was released.
pytestmark = pytest.mark.filterwarnings("ignore:reduction:UserWarning")

CPU = torch.device("cpu")
SETTINGS = {"cifar10": Settings(), "cifar100": Settings.cifar100(), "tiny": Settings.tiny()}


def optimizer(network, settings):
    return torch.optim.SGD(
        network.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )


@pytest.mark.parametrize("dataset", SETTINGS)
def test_the_literal_step_is_the_released_one(dataset):
    case, settings = Case("resnet8", dataset, 4), SETTINGS[dataset]
    ours = trained_networks(case, CPU, torch.contiguous_format)
    ours = {name: network.double() for name, network in ours.items()}
    theirs = copy.deepcopy(ours)
    step = LiteralStep(case.config("fp32"), ours)
    optimizers = {name: optimizer(network, settings) for name, network in theirs.items()}
    for batch in random_batches(case, CPU, torch.contiguous_format, count=2):
        images = batch.images.double()
        noise = {"adversarial": 0.001 * torch.randn(images.shape, dtype=torch.float64)}
        found = step(images, batch.labels, noise)
        expected = training_step(theirs, optimizers, images, batch.labels, settings, noise)
        assert found == pytest.approx(expected, rel=1e-12)
    for name, network in theirs.items():
        torch.testing.assert_close(ours[name].state_dict(), network.state_dict(), rtol=0, atol=1e-12)


def test_the_literal_step_reads_four_numbers_and_draws_its_noise_on_the_host(monkeypatch):
    case = Case("resnet8", "cifar10", 2)
    step = literal_step(case, CPU, torch.contiguous_format, None)
    reads, draws = [], []
    item, randn = torch.Tensor.item, torch.randn
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append(1) or item(self))
    monkeypatch.setattr(torch, "randn", lambda *size, **keys: draws.append(keys) or randn(*size, **keys))
    (batch,) = random_batches(case, CPU, torch.contiguous_format, count=1)
    step(batch.images, batch.labels)
    assert len(reads) == 4
    assert draws == [{}]


def test_the_literal_step_does_every_forward_of_the_released_one():
    case = Case("resnet8", "cifar10", 2)
    step = literal_step(case, CPU, torch.contiguous_format, None)
    modes = {name: [] for name in step.networks}
    for name, network in step.networks.items():
        network.register_forward_pre_hook(lambda module, _, name=name: modes[name].append(module.training))
    (batch,) = random_batches(case, CPU, torch.contiguous_format, count=1)
    step(batch.images, batch.labels)
    assert modes == {"student": [False] * 10 + [True] * 3, "peer": [False, True]}


@pytest.mark.parametrize(
    ("dtype", "steps"), [(torch.bfloat16, 1), pytest.param(torch.float16, 12, marks=pytest.mark.soak)]
)
def test_autocast_trains_too(dtype, steps):
    case = Case("resnet8", "cifar10", 2)
    step = literal_step(case, CPU, torch.channels_last, dtype)
    (batch,) = random_batches(case, CPU, torch.channels_last, count=1)
    student = step.networks["student"]
    before = copy.deepcopy(student.linear.weight)
    logits = []
    student.register_forward_hook(lambda *call: logits.append(call[2].dtype))
    # The scaler of float16 leaves out the first steps, whose gradients overflow.
    for _ in range(steps):
        assert step(batch.images, batch.labels)["student_loss"] > 0
    assert set(logits) == {dtype}
    assert step.mixed_precision["scaler"].is_enabled() == (dtype == torch.float16)
    assert not torch.equal(before, student.linear.weight)


def test_random_images_are_the_same_each_time():
    case = Case("resnet8", "tiny", 2)
    first, second = (random_batches(case, CPU, torch.channels_last, count=1)[0] for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.images.shape == (2, 3, 64, 64)
    assert first.images.is_contiguous(memory_format=torch.channels_last)


def test_cases_are_all_combinations():
    found = cases(["resnet8"], ["cifar10", "tiny"], [2, 4])
    assert [(case.dataset, case.batch) for case in found] == [
        ("cifar10", 2), ("cifar10", 4), ("tiny", 2), ("tiny", 4),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--datasets must be among cifar10, .*, got mnist"):
        Case("resnet8", "mnist", 2)


def test_what_is_no_checkout_is_said_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"is not a checkout of the released PeerAiD code .*; clone"):
        ReleasedCode(tmp_path)


RELEASED = {
    "main.py": """
raise RuntimeError("a training began")

def train_kd(epoch):
    peer_net.train()
    for inputs, targets in train_loader:
        inputs, targets = inputs.to(device), targets.to(device)
        adv = adversary_student_training.perturb(peer_net(inputs).detach(), inputs, targets, k_train)
        loss = peer_criterion(student_net(adv), targets) * args.gamma1
        student_optimizer.zero_grad()
        loss.backward()
        student_optimizer.step()
        print("a line for each batch")
""",
    "attack_function.py": """
class LinfPeerAttack:
    def __init__(self, model, epsilon, alpha):
        self.alpha = alpha

    def perturb(self, logits, x, y, steps):
        return x + steps * self.alpha
""",
    "models/__init__.py": """
from torch import nn
from pytorchcv.model_provider import get_model

def model_builder(model_str, num_classes, dataset):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in RELEASED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_the_training_loop_is_taken_out_of_a_checkout(checkout, capsys):
    code, case = ReleasedCode(checkout), Case("resnet18", "cifar10", 2)
    run = code.loop_over(case, CPU, random_batches(case, CPU, torch.contiguous_format))
    weight = run.names["student_net"][1].weight
    before = weight.clone()
    run(3)
    assert not torch.equal(before, weight)
    assert capsys.readouterr().out == ""


def test_the_released_attack_needs_cuda(checkout):
    case = Case("resnet18", "cifar10", 2)
    with pytest.raises(UserError, match="needs CUDA"):
        ReleasedCode(checkout).runner(case, CPU, random_batches(case, CPU, torch.contiguous_format))
