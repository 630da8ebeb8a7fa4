"""The step on tensors that say they are on a GPU: it waits for nothing, and mixes no devices."""

import shutil

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig, TrainConfig
from fastpeer.data.stream import Batch
from fastpeer.methods import loss_settings, method_names
from fastpeer.models import build_model
from fastpeer.step.precision import keep_pixels_exact
from fastpeer.step.step import TrainingStep
from tests.step.fake_cuda import NoWaiting, build, fake_cuda, to_fake_cuda

pytestmark = pytest.mark.usefixtures("nothing_logged")

CLASSES = 10
BATCH = 4
MODELS = [
    "resnet18", "resnet34", "resnet50", "preactresnet18", "wideresnet28x2", "wideresnet34x10", "mobilenetv2"
]  # fmt: skip
# Triton and CUDA graphs need a real device; a compiled region runs as it is while it is traced.
TRACED = {"kernels": "off", "graph": "off", "streams": "off"}
ENGINES = {
    "all": EngineConfig(**TRACED, fold="on", chain="on", merge="on", compile="on"),
    "uncompiled": EngineConfig(**TRACED, fold="on", chain="on", merge="on", compile="off"),
    "none": EngineConfig(**TRACED, fold="off", chain="off", merge="off", compile="off"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return build(tmp_path_factory.mktemp("fake_cuda"))


@pytest.fixture
def _fake(library):
    with fake_cuda(library):
        yield


def step_on(
    name, engine, precision, spoil=None, method="peeraid", epoch=0, loss=None, attacked_in="run", **attack
):
    own = loss_settings(method)(**(loss or {}))
    config = Config(
        method=method, attack=AttackConfig(steps=2, precision=attacked_in, **attack), engine=engine,
        precision=precision, loss=own,
        train=TrainConfig(batch_size=BATCH),
    )  # fmt: skip
    table = config.table.at(epoch)
    networks = {}
    for role in (*table.trained, *table.frozen):
        networks[role] = to_fake_cuda(build_model(name, CLASSES))
        if precision == "bf16":
            keep_pixels_exact(networks[role])
        if role in table.frozen:
            networks[role].eval().requires_grad_(False)
    if spoil:
        networks["student"].register_forward_hook(spoil)
    step = TrainingStep(config, table, networks)
    images = torch.empty(BATCH, 3, 32, 32, device="cuda", memory_format=torch.channels_last)
    batch = Batch(images, torch.empty(BATCH, dtype=torch.int64, device="cuda"))
    with NoWaiting():
        result = step.train_on(batch, 0)
    for role, network in networks.items():
        grads = [weight.grad for weight in network.parameters()]
        trained = role in table.trained
        assert all(grad.device.type == "cuda" if trained else grad is None for grad in grads)
    return result


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("bf16", "all"),
        ("fp16", "uncompiled"),
        ("fp32", "none"),
        *(
            pytest.param(precision, engine, marks=pytest.mark.soak)
            for precision, engine in (
                ("fp32", "all"), ("fp16", "all"), ("fp32", "uncompiled"), ("bf16", "uncompiled"),
                ("bf16", "none"), ("fp16", "none"),
            )
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["resnet8", pytest.param("wideresnet10x2", marks=pytest.mark.soak)])
def test_every_engine_and_precision_can_be_traced(name, precision, engine):
    result = step_on(name, ENGINES[engine], precision)
    assert {one.device.type for one in result} == {"cuda"}


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.soak),
        pytest.param("resnet50", marks=pytest.mark.soak),
        "preactresnet18",
        pytest.param("preactresnet18-rice", marks=pytest.mark.soak),
        "wideresnet28x2",
        pytest.param("wideresnet34x10", marks=pytest.mark.soak),
        pytest.param("mobilenetv2", marks=pytest.mark.soak),
    ],
)
def test_every_model_can_be_traced(name):
    step_on(name, ENGINES["all"], "bf16")


METHODS = {
    **{name: (name, 0, {}) for name in method_names() if name != "peeraid"},
    "iad, late": ("iad", 100, {}),
    "iad-ii, late": ("iad-ii", 100, {}),
    "kdiga, adversarial": ("kdiga", 0, {"adversarial": True}),
    "adaad, both terms": ("adaad", 0, {"alpha": 0.7}),
}
EACH_MAKE = (
    "natural", "trades", "rslad", "iad, late", "cat", "adaad, both terms", "mtard", "kdiga, adversarial"
)  # fmt: skip


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.soak), "bf16"])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in EACH_MAKE else pytest.mark.soak) for case in METHODS],
)
def test_every_method_can_be_traced(case, precision):
    method, epoch, loss = METHODS[case]
    result = step_on("resnet8", ENGINES["all"], precision, method=method, epoch=epoch, loss=loss)
    assert {one.device.type for one in result} == {"cuda"}


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    "case",
    [
        "adaad, both terms",
        "kdiga",
        "cat",
        *(pytest.param(case, marks=pytest.mark.soak) for case in ("mtard", "iad, late")),
    ],
)
def test_every_kind_of_method_can_be_traced_in_fp16_and_without_the_fast_parts(case):
    method, epoch, loss = METHODS[case]
    for engine, precision in (("all", "fp16"), ("none", "fp32")):
        step_on("resnet8", ENGINES[engine], precision, method=method, epoch=epoch, loss=loss)


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize("method", ["peeraid", "pgd-at", "adaad"])
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("all", "bf16"),
        *(pytest.param(*one, marks=pytest.mark.soak) for one in (("none", "fp32"), ("all", "fp16"))),
    ],
)
def test_attacks_in_the_l2_ball_can_be_traced(method, engine, precision):
    result = step_on("resnet8", ENGINES[engine], precision, method=method, norm="l2", epsilon=0.5)
    assert {one.device.type for one in result} == {"cuda"}


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    "method",
    ["peeraid", *(pytest.param(name, marks=pytest.mark.soak) for name in ("trades", "adaad", "ard", "cat"))],
)
def test_attacks_in_a_format_of_their_own_can_be_traced(method):
    result = step_on("resnet8", ENGINES["all"], "bf16", method=method, attacked_in="fp16")
    assert {one.device.type for one in result} == {"cuda"}


SPOILS = {
    "item": lambda _, __, out: out * out.sum().item(),
    "branch": lambda _, __, out: out if out.sum() > 0 else -out,
    "device": lambda _, __, out: out + torch.ones(CLASSES, device="cpu"),
    "transfer": lambda _, __, out: out.cpu().to("cuda"),
    "mask": lambda _, __, out: out + out[out > 0].sum(),
}


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_step_that_waits_or_mixes_devices_raises(spoil):
    with pytest.raises(Exception, match=r"local_scalar_dense|data.dependent|device|cpu|nonzero|unbacked"):
        step_on("resnet8", ENGINES["none"], "fp32", spoil)


@pytest.mark.usefixtures("library")
def test_nothing_of_it_stays():
    leaf = torch.ones(2, requires_grad=True)
    (leaf * 2).sum().backward()
    assert leaf.grad.tolist() == [2, 2]
