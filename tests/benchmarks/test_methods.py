"""Every method's literal step beside fastpeer's: both are built and run, do the same, and are shown."""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import methods
from benchmarks.steps import variants
from benchmarks.steps.cases import Case, measured_methods, measured_table, random_batches, random_teachers
from benchmarks.steps.literal import literal_step
from fastpeer.config import AttackConfig, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.methods import method_names
from fastpeer.step.split_batchnorm import batchnorms
from fastpeer.step.step import TrainingStep

# PyTorch warns that "mean" is not the mathematical KL; it is what was released.
pytestmark = pytest.mark.filterwarnings("ignore:reduction:UserWarning")

CPU = torch.device("cpu")
NO_COMPILE = EngineConfig(compile="off")


def batch_of(case):
    return random_batches(case, CPU, torch.contiguous_format, count=1)[0]


def run_once(step, case):
    batch = batch_of(case)
    return step(batch.images, batch.labels)


def run_the_script(monkeypatch, tmp_path, *names, **changes):
    said = []
    monkeypatch.setattr(methods, "show", lambda *what: said.extend(what))
    arguments = methods.Arguments(
        methods=names, models=("resnet8",), batch_sizes=(2,), device="cpu", json=tmp_path / "methods.json",
        rounds=3, seconds=0.001, engine=NO_COMPILE, **changes,
    )  # fmt: skip
    methods.main(arguments)
    return said


def test_all_methods_are_measured():
    assert {*method_names(), "kdiga-ard"} == set(measured_methods())


EACH_MAKE = ("peeraid", "mtard", "cat", "kdiga-ard")


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in EACH_MAKE else pytest.mark.soak) for one in measured_methods()],
)
def test_every_method_runs_a_step_in_each_form(name):
    case = Case("resnet8", "cifar10", 2, name)
    builds = methods.variants(methods.Arguments(precisions=("bf16", "fp32"), engine=NO_COMPILE))
    assert list(builds) == [methods.FIRST, methods.AMP, "fastpeer, bf16", "fastpeer, fp32"]
    for build in builds.values():
        built = build(case, CPU)
        built.run(1)
        assert built.obstacle() == ""


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        *((name, "cifar10") for name in measured_methods()),
        ("peeraid", "tiny"),
        ("cat", "tiny"),
        *(
            pytest.param(name, dataset, marks=pytest.mark.soak)
            for name in measured_methods()
            for dataset in ("cifar100", "tiny")
            if (name, dataset) not in (("peeraid", "tiny"), ("cat", "tiny"))
        ),
    ],
)
def test_both_have_the_same_settings(name, dataset, monkeypatch):
    """Without attacks, whose noise differs, a step does the same."""
    case, still = Case("resnet8", dataset, 2, name), AttackConfig(steps=0, epsilon=0.0, start_std=0.0)
    config = replace(case.config("fp64", NO_COMPILE), attack=still)
    monkeypatch.setattr(Case, "config", lambda *_: config)
    literal = literal_step(case, CPU, torch.contiguous_format, None)
    for network in literal.networks.values():
        network.double()
    networks = copy.deepcopy(literal.networks)
    batch = batch_of(case)
    batch = Batch(batch.images.double(), batch.labels)
    ours = TrainingStep(config, measured_table(config), networks).train_on(batch, 0).losses.sum().item()
    theirs = literal(batch.images, batch.labels)["loss"]
    # These write their divergences with an offset, or without a constant.
    assert ours == pytest.approx(theirs, rel=1e-9) or name in ("rslad", "mtard", "akd2")
    for role, network in literal.networks.items():
        torch.testing.assert_close(networks[role].state_dict(), network.state_dict(), rtol=0, atol=1e-10)


def test_the_attack_takes_what_the_run_says(monkeypatch):
    case = Case("resnet8", "cifar10", 2, "cat")
    overruling = AttackConfig(epsilon=0.1, step_size=0.05, steps=4, clamp_start="on", batchnorm="train")
    config = replace(case.config("fp32"), attack=overruling)
    monkeypatch.setattr(Case, "config", lambda *_: config)
    step = literal_step(case, CPU, torch.contiguous_format, None)
    found = step.settings
    assert (found.epsilon, found.step_size, found.steps) == (0.1, 0.05, 4)
    assert found.clamp_start
    assert found.peer_clamp_start
    assert found.attack_batch_norm == found.peer_attack_batch_norm == "train"


def test_the_noise_is_drawn_anew_for_each_attack():
    case = Case("resnet8", "cifar10", 8, "cat")
    step = literal_step(case, CPU, torch.contiguous_format, None)
    images = batch_of(case).images
    first, second = step._noise(images), step._noise(images)
    assert list(first) == ["adversarial", "peer_adversarial"]
    assert first["adversarial"].std().item() == pytest.approx(0.001, rel=0.05)
    uniform = first["peer_adversarial"].abs()
    assert uniform.max() <= 8 / 255
    assert uniform.mean().item() == pytest.approx(4 / 255, rel=0.05)
    assert not torch.equal(first["adversarial"], second["adversarial"])


@pytest.mark.parametrize("name", ["iad", "iad-ii"])
def test_methods_with_two_phases_are_measured_in_the_later_one(name):
    case = Case("resnet8", "cifar10", 2, name)
    config = case.config("fp32")
    assert measured_table(config) == config.table.later.method
    literal = literal_step(case, CPU, torch.contiguous_format, None)
    assert literal.epoch >= literal.settings.begin
    assert run_once(literal, case)["self_kl"] > 0


def test_teachers_are_frozen_and_have_seen_something():
    case = Case("resnet8", "cifar10", 16, "mtard")
    teachers = random_teachers(case, CPU)
    again = random_teachers(case, CPU)
    assert list(teachers) == ["teacher", "natural_teacher"]
    first, second = (one.linear.weight for one in teachers.values())
    assert not torch.equal(first, second)
    assert torch.equal(first, again["teacher"].linear.weight)
    for network in teachers.values():
        assert not network.training
        assert not any(one.requires_grad for one in network.parameters())
        assert all(norm.running_mean.abs().max() > 0 for norm in batchnorms(network))
        assert all(norm.momentum == 0.1 for norm in batchnorms(network))
    # In eval mode values keep the size that they have in train mode.
    assert 0.1 < teachers["teacher"](batch_of(case).images).std() < 10


def test_under_autocast_networks_run_in_bf16_and_losses_in_float32():
    case = Case("resnet8", "cifar10", 2, "ard")
    step = literal_step(case, CPU, torch.channels_last, torch.bfloat16)
    seen = []
    step.networks["student"].network.linear.register_forward_hook(lambda *one: seen.append(one[2].dtype))
    assert step.networks["teacher"](batch_of(case).images).dtype == torch.float32
    assert run_once(step, case)["loss"] > 0
    assert set(seen) == {torch.bfloat16}


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"must be among adaad, .*, got trade"):
        Case("resnet8", "cifar10", 2, "trade")


def test_one_table_shows_all_methods(monkeypatch, tmp_path):
    said = run_the_script(monkeypatch, tmp_path, "kdiga", "natural")
    *each, last = said
    assert [table.title.split(",")[0] for table in each] == ["kdiga", "natural"]
    assert last.title == "resnet8, cifar10 (32×32), batch 2, images/s"
    assert [column.header for column in last.columns] == [
        "method", methods.FIRST, methods.AMP, "×", "fastpeer, bf16", "×",
    ]  # fmt: skip
    cells = [list(column.cells) for column in last.columns]
    assert cells[0] == ["kdiga", "natural"]
    assert "–" not in {cell for column in cells for cell in column}
    assert {one.name for one in tmp_path.iterdir()} == {"methods.json", "methods.png"}


def test_what_cannot_run_has_a_dash_and_a_reason(monkeypatch, tmp_path):
    def broken(case, device):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(methods, "literal", broken)
    said = run_the_script(monkeypatch, tmp_path, "natural")
    assert said[1] == f"not measured: {methods.FIRST} (out of luck)"
    cells = [next(iter(column.cells)) for column in said[-1].columns]
    # Nothing to compare with, and so no ratios.
    assert [cells[place] for place in (1, 3, 5)] == ["–", "–", "–"]
    assert "–" not in (cells[2], cells[4])


def test_fastpeer_gets_teachers_in_its_own_format():
    case = Case("resnet8", "cifar10", 2, "akd2")
    networks = variants.ready_networks(case, case.config("bf16"), CPU)
    assert set(networks) == {"student", "teacher", "natural_teacher"}
    assert {type(one.conv1).__name__ for one in networks.values()} == {"ExactConv2d"}
