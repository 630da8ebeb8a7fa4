"""Steps by the formulas of our own kernels, in float64, beside a literal transcription of the released step.

The switches need CUDA, where nothing computes in float64; here each kernel's plain formula stands in for it.
"""

import copy
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from fastpeer.config import EngineConfig
from fastpeer.kernels.choice import torch_kernels
from fastpeer.victims.factory import OwnKernels
from tests.literal.peeraid import Settings
from tests.step.test_released_step import assert_same, batches, config_for, engine_run, literal_run, networks
from tests.victims.plain_formulas import let_formulas_run

pytestmark = pytest.mark.usefixtures("nothing_logged")

BATCHES = 2
ALONE = {
    "convolutions": {"convolution", "convolution_input_gradient"},
    "other_convolutions": {"convolution", "convolution_input_gradient"},
    "sign_bits": {"convolution", "convolution_input_gradient"},
    "stem": {"first_convolution", "first_convolution_gradient"},
    "stem_step": {"first_convolution", "first_convolution_step"},
    "head": {"attack_head"},
}
"""The kernels that each switch brings into an attack, with the switch that it needs on."""
NEEDED = {"other_convolutions": "convolutions", "sign_bits": "convolutions", "stem_step": "stem"}
OFF = EngineConfig(**{part.name: "off" for part in fields(EngineConfig)})
CHAIN = replace(OFF, fold="on", chain="on", kernels="on")
ALL = replace(CHAIN, merge="on", batchnorm="on", **dict.fromkeys(ALONE, "on"))


def alone(part):
    return replace(CHAIN, **{name: "on" for name in (part, NEEDED.get(part)) if name})


def others(part):
    """Return all but a part, and but those that need it."""
    return replace(ALL, **{name: "off" for name in ALONE if part in (name, NEEDED.get(name))})


@pytest.fixture
def calls(monkeypatch):
    """Let every part be used on this CPU, in float64; return how often each kernel was called."""
    counted, plain = Counter(), torch_kernels()

    def counting(name):
        def call(*arguments, **named):
            counted[name] += 1
            return getattr(plain, name)(*arguments, **named)

        return call

    names = {name for kernels in ALONE.values() for name in kernels}
    kernels = replace(plain, **{name: counting(name) for name in names})
    monkeypatch.setattr("fastpeer.step.options._obstacle", lambda *_: "")
    monkeypatch.setattr("fastpeer.step.options.triton_kernels", lambda: kernels)
    let_formulas_run(monkeypatch)
    return counted


def step_by(engine):
    literal = Settings()
    ours = networks("resnet8", 10)
    theirs = copy.deepcopy(ours)
    ours = {role: network.to(memory_format=torch.channels_last) for role, network in ours.items()}
    data = batches(10, 16, count=BATCHES, tail=3)
    step = engine_run(ours, config_for(literal, engine=engine), data, literal.start_std)
    literal_run(theirs, literal, data, literal.start_std)
    assert_same(ours, theirs)
    assert not step.options.refused


@pytest.mark.parametrize("part", ALONE)
def test_no_kernel_alone_changes_the_step(part, calls):
    step_by(alone(part))
    assert set(calls) == ALONE[part]


@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.soak) for part in ALONE])
def test_no_kernel_among_the_others_changes_the_step(part, calls):
    step_by(others(part))
    assert calls


def test_all_kernels_together_do_not_change_the_step(calls):
    step_by(ALL)
    steps, layers = BATCHES * Settings().steps, 9
    assert calls["convolution_input_gradient"] == steps * (layers - 1)
    assert calls["first_convolution_step"] == calls["attack_head"] == steps
    # Besides, the peer in eval mode gives each batch its target.
    assert calls["first_convolution"] == steps + BATCHES
    assert not calls["first_convolution_gradient"]


def test_these_are_all_switches_of_own_kernels():
    assert set(ALONE) == {part.name for part in fields(OwnKernels)}
