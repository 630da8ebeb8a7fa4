"""Signs of hidden gradients: in figures, and of a network that rounds what it sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.obfuscation import ATTACKS, checks, verdict
from tests.evaluation.nets import digits, trained
from tests.evaluation.results import by_image, result
from tests.evaluation.streams import stream_of

IMAGES = 10_000
# PeerAiD, CIFAR-10, ResNet-18: Table 1 and 7; the paper has no figure for CW and Square.
PAPER = {
    "clean": 8501, "fgsm": 6128, "pgd10": 5554, "pgd1000": 5394, "cw30": 5300, "unbounded100": 0,
    "square": 5700,
}  # fmt: skip


def found(figures):
    """Results of so many images that withstand, or of each image."""
    verdicts = {
        name: np.arange(IMAGES) < right if isinstance(right, int) else right
        for name, right in figures.items()
    }
    return {
        name: replace(
            result(name), correct=int(correct.sum()), images=len(correct), total=len(correct),
            by_image=by_image(correct),
        )
        for name, correct in verdicts.items()
    }  # fmt: skip


def answers(figures):
    return [check.suspicious for check in checks(found(figures))]


def test_one_image_of_few_is_chance():
    few = {name: np.arange(8) < right // 1250 for name, right in PAPER.items()}
    others = np.arange(8) > 0
    assert answers(few | {"fgsm": few["pgd10"] & others}) == [False] * 4
    assert answers(few | {"square": few["cw30"] & others}) == [False] * 4
    # One that withstands an attack without bounds is not.
    assert answers(few | {"unbounded100": ~others}) == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [False] * 4),
        ({"fgsm": 5500}, [True, False, False, False]),
        ({"unbounded100": 30}, [False, True, False, False]),
        ({"square": 5279}, [False, False, True, False]),
        # As strong as PGD, but it finds others.
        ({"square": np.arange(IMAGES) >= IMAGES - 5394}, [False, False, True, False]),
        # Stronger than PGD, but the margin's gradient finds the same.
        ({"square": 5300}, [False] * 4),
        ({"pgd1000": 5000}, [False, False, False, True]),
        # By chance: less than 0.2 % of the images.
        ({"fgsm": 5540, "unbounded100": 20, "square": 5280}, [False] * 4),
    ],
)
def test_each_check_answers_its_question(change, expected):
    assert answers(PAPER | change) == expected
    lines = list(verdict(list(found(PAPER | change).values())))
    assert [("YES" in line) for line in lines[:4]] == expected
    count = sum(expected)
    assert lines[4].startswith(f"{count} of 4 checks say" if count else "none of 4 checks says")


def test_without_all_attacks_there_is_no_verdict():
    assert list(verdict([result("clean"), result("fgsm")])) == []


class Rounding(nn.Module):
    """A network that sees eight grey levels, and whose gradient is zero."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((images * 8).round() / 8)


def signs(network, monkeypatch):
    monkeypatch.setattr(standard, "SQUARE_QUERIES", 300)
    images, labels = digits(10, 1000, 8)
    settings = AttackSettings(0.15, 0.04, 10, 0, 8, evaluation_options(torch.device("cpu")))
    stream = stream_of(images, labels, 8)
    return answers(
        {
            name: classify_under_attack(name, network, stream, settings, lambda *_: None).correct
            for name in ATTACKS
        }
    )


def test_a_network_that_hides_its_gradient_is_found(monkeypatch):
    _, withstands, random_search, _ = signs(Rounding(trained(10)).eval(), monkeypatch)
    assert withstands
    assert random_search


@pytest.mark.soak
def test_the_same_network_without_that_is_not(monkeypatch):
    assert signs(trained(10), monkeypatch) == [False] * 4
