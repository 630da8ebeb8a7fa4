"""Networks that hide their gradient are told from those that do not, without leaving a trace in them."""

import copy
import logging

import pytest
import torch
from torch import nn

from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack_parts.official import build_autoattack
from fastpeer.evaluation.hidden_gradients import (
    DYNAMIC,
    PROBABILITIES,
    RANDOM,
    TOGETHER,
    UNDEFINED,
    ZERO,
    ZERO_IN_AUTOATTACK,
    autoattack_messages,
    autoattack_reasons,
    hidden_gradients,
)
from fastpeer.models import build_model
from tests.evaluation.streams import stream_of

CLASSES = 5


def images(count=20):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small network, with something before and something behind it."""

    def __init__(self, before=lambda x: x, behind=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(4, CLASSES)
        self.before, self.behind = before, behind

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(self.before(x)))).mean((2, 3))
        return self.behind(self.linear(self.dropout(x)))


class Rounding(Net):
    """A network by name."""

    def __init__(self, classes):
        super().__init__(before=torch.round)


def stream(dtype=torch.float32):
    return stream_of(images().to(dtype), torch.arange(20) % CLASSES)


def zero(count, images=16):
    return f"the gradient is zero at {count} of {images} images {ZERO}"


def half_rounded(x):
    return torch.cat([x[:4].round(), x[4:]])


def with_nan_gradients(x, count):
    """Return the same images; the first ones have a gradient of NaN, that of a root at zero."""
    return torch.cat([x[:count] + (0 * x[:count]).sqrt(), x[count:]])


HIDING = {
    "rounds": ({"before": torch.round}, [zero(16)]),
    "rounds some": ({"before": half_rounded}, [zero(4)]),
    "cuts off": ({"before": torch.detach}, [zero(16)]),
    "without gradient": ({"behind": torch.detach}, [zero(16)]),
    "saturated": ({"behind": lambda logits: logits * 1e6}, None),
    "batch": ({"before": lambda x: x - x.mean(0)}, [TOGETHER]),
    "random": ({"behind": lambda logits: logits + torch.rand_like(logits)}, [RANDOM]),
    "random input": ({"before": lambda x: x + 0.1 * torch.randn_like(x)}, [RANDOM]),
    "softmax": ({"behind": lambda logits: logits.softmax(1)}, [PROBABILITIES]),
    "NaN": (
        {"before": lambda x: with_nan_gradients(x, 3)},
        [f"the gradient is NaN at 3 of 16 images: {UNDEFINED}"],
    ),
}


@pytest.mark.parametrize("kind", HIDING)
def test_networks_that_hide_their_gradient_are_found(kind):
    parts, reasons = HIDING[kind]
    found = hidden_gradients(Net(**parts), stream())
    assert found == reasons if reasons else found[0].startswith("the gradient is zero at ")


@pytest.mark.parametrize(
    "network",
    [
        Net(),
        Net(behind=lambda logits: logits.log_softmax(1)),
        # Sure of what it sees, as naturally trained networks are.
        Net(behind=lambda logits: 50 * logits),
        # Zeros in the classifier, as some networks begin.
        Net(behind=lambda logits: 0 * logits),
        *(build_model(name, CLASSES) for name in ("resnet8", "mobilenetv2", "preactresnet18")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_networks_are_not(network, dtype):
    assert hidden_gradients(copy.deepcopy(network).to(dtype), stream(dtype)) == []


def test_the_check_leaves_no_trace():
    network = Net(behind=lambda logits: logits + torch.rand_like(logits))
    network.norm.eval()
    # Statistics that move in eval mode too.
    network.norm.momentum, network.before = 0.5, lambda x: x.add(network.norm.num_batches_tracked.add_(1))
    weights = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    hidden_gradients(network, stream())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_the_check_computes_without_tf32_and_leaves_the_switches():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    seen = []

    def look(x):
        seen.append((matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark))
        return x

    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = True
        hidden_gradients(Net(before=look), stream())
        assert set(seen) == {(False, False, False)}
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, True, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("kind", ["rounds", "cuts off", "without gradient"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd2", "aa"])
def test_networks_without_a_gradient_can_be_attacked(kind, attack):
    network = Net(**HIDING[kind][0]).eval().requires_grad_(False)
    pair = images(2)
    wrong = (network(pair).argmax(1) + 1) % CLASSES
    # AutoAttack would need a minute for images that are classified correctly.
    stream = stream_of(pair, wrong if attack == "aa" else network(pair).argmax(1))
    settings = AttackSettings(1e-6, 1e-6, CLASSES, 0, 2, evaluation_options(torch.device("cpu")))
    found = classify_under_attack(attack, network, stream, settings, lambda done, stage="": None)
    assert found.correct.tolist() == [attack != "aa"] * 2


@pytest.mark.parametrize("attack", ["fgsm", "pgd2", "cw2", "unbounded2", "pgd50"])
def test_an_image_that_a_nan_gradient_kept_from_attack_did_not_withstand_it(attack):
    labels = Net().eval()(images(5)).argmax(1)
    settings = AttackSettings(1e-6, 1e-6, CLASSES, 0, 5, evaluation_options(torch.device("cpu")))
    found = [
        classify_under_attack(attack, network.eval(), stream_of(images(5), labels), settings, lambda *_: None)
        for network in (Net(), Net(before=lambda x: with_nan_gradients(x, 2)))
    ]
    assert found[0].correct.all()
    assert found[0].finite.all()
    assert found[1].correct.tolist() == found[1].finite.tolist() == [False] * 2 + [True] * 3


def test_what_autoattack_warns_of_is_said_in_other_words(caplog):
    logger = logging.getLogger("auto-attack")
    with autoattack_messages() as messages:
        logger.warning(
            'it seems to be a randomized defense! Please use version="rand". See flags_doc.md for details.'
        )
        logger.warning("there are 3 points with zero gradient! See flags_doc.md for details.")
        logger.warning("there are 4 points with zero gradient! See flags_doc.md for details.")
        logger.warning("it seems that the output is a probability distribution, please be sure")
        logger.warning("it seems to be a dynamic defense!")
        logger.warning("it is odd. See flags_doc.md for details.")
        logger.info("robust accuracy")
    assert caplog.text == ""
    expected = [RANDOM, ZERO_IN_AUTOATTACK, PROBABILITIES, DYNAMIC, "it is odd."]
    assert autoattack_reasons(messages) == expected
    assert not any("version" in reason or ".md" in reason for reason in expected)


def test_autoattack_s_own_messages_are_known():
    network = Net(before=torch.round, behind=lambda logits: logits.softmax(1)).eval()
    pair = images(2)
    labels = network(pair).argmax(1)
    attack = build_autoattack(network, 0.03, CLASSES, 0, torch.device("cpu"))
    attack.attacks_to_run = ["apgd-t"]
    attack.apgd_targeted.n_iter = 2
    with autoattack_messages() as messages:
        attack.run_standard_evaluation(pair, labels, batch_size=2)
    assert autoattack_reasons(messages) == [PROBABILITIES, ZERO_IN_AUTOATTACK]
