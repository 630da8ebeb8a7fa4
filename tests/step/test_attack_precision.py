"""Attacks in a number format of their own; targets, teachers and training keep the run's."""

import math

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.methods import loss_settings
from fastpeer.models import build_model
from fastpeer.step.precision import ready
from fastpeer.step.split_batchnorm import batchnorms
from fastpeer.step.step import TrainingStep
from fastpeer.victims.chain import ChainVictim

pytestmark = pytest.mark.usefixtures("nothing_logged")

CPU, CLASSES, BATCH = torch.device("cpu"), 5, 4
ENGINE = EngineConfig(fold="on", chain="on", merge="on", compile="off")
L2 = {"norm": "l2", "epsilon": 0.5, "step_size": 0.2}


def config_for(method, precision="fp32", attack="run", **changes):
    return Config(
        method=method, loss=loss_settings(method)(), precision=precision, engine=ENGINE,
        attack=AttackConfig(**{"steps": 2, "precision": attack, **changes}),
    )  # fmt: skip


def step_for(config):
    """Build a step on networks whose statistics have moved; the same weights for each configuration."""
    networks = {}
    for seed, role in enumerate((*config.table.trained, *config.table.frozen)):
        torch.manual_seed(seed)
        network = build_model("resnet8", CLASSES)
        for norm in batchnorms(network):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
        networks[role] = ready(network, config, CPU)
        if role in config.table.frozen:
            networks[role].eval().requires_grad_(False)
    return TrainingStep(config, config.table, networks)


def batch():
    random = torch.Generator().manual_seed(3)
    images = torch.rand(BATCH, 3, 16, 16, generator=random).to(memory_format=torch.channels_last)
    return Batch(images, torch.arange(BATCH))


def adversarial(step, count=None):
    return step.adversarial(batch().images, batch().labels, count)["adversarial"]


@pytest.mark.parametrize("ball", [{}, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_attack_is_that_of_a_run_in_its_format(mode, ball):
    """Towards labels, nothing but the attacked network decides about the examples."""
    own, expected, apart = (
        adversarial(step_for(config_for("pgd-at", precision, attack, batchnorm=mode, **ball)))
        for precision, attack in (("fp32", "run"), ("fp16", "run"), ("fp32", "fp16"))
    )
    assert torch.equal(apart, expected)
    assert not torch.equal(apart, own)


@pytest.mark.parametrize("method", ["peeraid", "trades", "cat", "adaad", "kdiga"])
def test_it_differs_from_the_runs_by_rounding_alone_whatever_the_target(method):
    plain, apart = (step_for(config_for(method, attack=attack)) for attack in ("run", "fp16"))
    for name in plain.adversaries:
        one, other = (step.adversarial(batch().images, batch().labels)[name] for step in (plain, apart))
        assert ((one - other).abs() < 1e-4).double().mean() > 0.85


@pytest.mark.parametrize("method", ["peeraid", "trades", "cat", "adaad"])
def test_after_a_step_the_new_weights_are_attacked(method):
    trained = step_for(config_for(method, attack="fp16"))
    before = adversarial(trained)
    trained.set_learning_rate(0.1)
    assert trained.train_on(batch(), 0).losses.isfinite().all()
    fresh = TrainingStep(trained.config, trained.method, trained.networks)
    found = adversarial(trained)
    assert torch.equal(found, adversarial(fresh))
    assert not torch.equal(found, before)


def test_targets_teachers_and_selection_keep_the_runs_format():
    step = step_for(config_for("peeraid", attack="fp16"))
    attacked = step.adversaries["adversarial"].victim
    assert isinstance(attacked, ChainVictim)
    assert attacked.input_dtype == torch.float16
    assert step.predictions.victims["student"] is attacked
    selected = step.victim_factory.victim(step.networks["student"], "student")
    assert {selected.input_dtype, step.predictions.victims["peer"].input_dtype} == {torch.float32}
    same = step_for(config_for("peeraid", "fp16", attack="fp16"))
    assert same.adversaries["adversarial"].victim is same.predictions.victims["student"]


@pytest.mark.parametrize("norm", [{}, L2], ids=["linf", "l2"])
def test_a_gradient_that_overflows_is_counted_and_moves_no_pixel_out_of_place(norm):
    count = torch.zeros(1, dtype=torch.int64)
    images = batch().images
    found = adversarial(step_for(config_for("pgd-at", attack="fp16", gradient_scale=2.0**40, **norm)), count)
    assert count.item() > 0
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - images).abs().max() <= 0.5


def test_powers_of_two_change_nothing_within_the_range():
    """They shift exponents; only values at the lower end of the range are rounded otherwise."""
    small, large = (
        adversarial(step_for(config_for("pgd-at", attack="fp16", gradient_scale=2.0**power)))
        for power in (10, 12)
    )
    assert ((small - large).abs() < 1e-4).double().mean() > 0.995


def test_a_run_says_which_format_its_attack_has_and_what_is_emulated(logged, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False, raising=False)
    lines = step_for(config_for("peeraid", attack="fp16")).describe()
    assert "engine, the student in eval mode, in fp16: folded 9 of 9 BatchNorms, a chain" in lines
    assert "engine, the peer in eval mode: folded 9 of 9 BatchNorms, a chain" in lines
    assert lines[0] == "engine: fold, chain, merge"
    assert lines[-1] == (
        "this processor has no float16 instructions: --attack.precision run is several times faster"
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_no_factor_are_refused(scale):
    with pytest.raises(ValueError, match="gradient_scale must be a finite number above 0, got"):
        AttackConfig(gradient_scale=scale)
