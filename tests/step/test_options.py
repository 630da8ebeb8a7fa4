"""What the engine's settings come to."""

from dataclasses import fields, replace

import pytest
import torch

from fastpeer.config import Config, EngineConfig, ModelConfig
from fastpeer.step.measured import Device, Gain, Workload, describe_device
from fastpeer.step.options import Options, choose_options, options_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORK = Workload(network="resnet18", size=32, batch=128, precision="bf16")
H200 = Device(kind="cuda", name="NVIDIA H200", capability="9.0")
# But for what only KDIGA has.
UNMEASURED = {"other_convolutions", "sign_bits", "stem_step", "head"}
DOUBTFUL = {"streams", "convolutions", "stem", "batchnorm", *UNMEASURED}
PARTS = [field.name for field in fields(EngineConfig) if field.name != "double_backward"]


def options(device=CPU, precision="bf16", **switches):
    workload = Workload(network="resnet18", size=32, batch=128, precision=precision)
    made = choose_options(EngineConfig(**switches), device, workload)
    return made, list(made.refused)


@pytest.fixture
def _triton_and_compiler(monkeypatch):
    """A machine with a GPU and all that its parts need."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)
    of_cpu = describe_device(CPU)
    monkeypatch.setattr(
        "fastpeer.step.options.describe_device", lambda device: H200 if device == CUDA else of_cpu
    )


def used(made):
    return {name for name in PARTS if getattr(made, name)}


def test_auto_takes_what_a_cpu_gains_by_and_says_nothing():
    made, refused = options()
    assert used(made) == {"fold", "chain", "merge"}
    assert not refused


@pytest.fixture
def _nothing_measured(monkeypatch):
    monkeypatch.setattr("fastpeer.step.measured.shipped_gains", lambda: ())


@pytest.mark.usefixtures("_triton_and_compiler", "_nothing_measured")
def test_auto_takes_all_but_the_doubtful_where_nothing_was_measured_and_calls_it_a_guess():
    made, refused = options(CUDA)
    assert used(made) == set(PARTS) - DOUBTFUL
    assert not refused
    assert made.describe() == [
        "engine: fold, chain, merge, compile, graph, kernels (fold, chain, merge, compile, graph, kernels"
        " a guess)",
        "engine, not used: convolutions (a guess); other_convolutions (needs"
        " engine.convolutions); sign_bits (needs engine.convolutions);"
        " stem (only with engine.convolutions); stem_step (needs"
        " engine.stem); head (only with"
        " engine.convolutions); batchnorm (a guess);"
        " streams (only with engine.batchnorm)",
    ]


def gain(part, ratio, device=H200, workload=WORK):
    return Gain(part=part, ratio=ratio, device=device, workload=workload, commit="0", date="2026-01-01")


@pytest.mark.usefixtures("_triton_and_compiler")
def test_auto_goes_by_what_was_measured(monkeypatch):
    gains = [gain("fold", 1.2), gain("chain", 0.98), gain("merge", 1.0)]
    gains += [gain("batchnorm", 1.1), gain("streams", 1.03)]
    monkeypatch.setattr("fastpeer.step.measured.shipped_gains", lambda: gains)
    made, refused = options(CUDA)
    assert used(made) == set(PARTS) - {"chain", "convolutions", "stem", *UNMEASURED}
    assert not refused
    assert made.describe() == [
        "engine: fold, merge, compile, graph, kernels, batchnorm, streams (measured on NVIDIA H200 with"
        " resnet18, 32×32, batch 128, bf16; compile, graph, kernels a guess)",
        "engine, not used: chain (measured 0.98× on NVIDIA H200);"
        " convolutions (needs engine.chain); other_convolutions (needs engine.convolutions);"
        " sign_bits (needs engine.convolutions); stem (needs engine.chain); stem_step (needs engine.stem);"
        " head (needs engine.chain)",
    ]
    # What was measured on a GPU says nothing of a CPU.
    assert used(options(CPU)[0]) == {"fold", "chain", "merge", "compile"}


@pytest.mark.usefixtures("_triton_and_compiler")
def test_an_h200_takes_what_was_measured_on_one():
    assert used(options(CUDA)[0]) == set(PARTS) - UNMEASURED
    # Without its own kernels, the attack is compiled, and student and peer as one region.
    alone = used(options(CUDA, convolutions="off", batchnorm="off")[0])
    assert not {"stem", "streams"} & alone
    assert {"stem", "streams"} <= used(
        options(CUDA, convolutions="off", batchnorm="off", stem="on", streams="on")[0]
    )


@pytest.mark.usefixtures("_triton_and_compiler")
def test_a_switch_overrules_what_was_measured(monkeypatch):
    monkeypatch.setattr(
        "fastpeer.step.measured.shipped_gains", lambda: (gain("fold", 0.5), gain("merge", 2.0))
    )
    made, _ = options(CUDA, fold="on", merge="off")
    assert "fold" in used(made)
    assert "merge" not in used(made)


def test_a_runs_own_network_and_batch_are_looked_up(monkeypatch):
    other = replace(WORK, network="mobilenetv2", batch=64)
    cpu = Device(kind="cpu", name="some processor")
    gains = gain("fold", 0.9, cpu, other), gain("fold", 1.1, cpu, WORK)
    monkeypatch.setattr("fastpeer.step.measured.shipped_gains", lambda: gains)
    models = ModelConfig(student="mobilenetv2")
    assert not options_of(Config(model=models), CPU, 32).fold
    assert options_of(Config(), CPU, 32).fold


@pytest.mark.parametrize("part", PARTS)
def test_off_is_off(part):
    for device in (CPU, CUDA):
        made, refused = options(device, **{part: "off"})
        assert part not in used(made)
        assert not refused


@pytest.mark.usefixtures("_triton_and_compiler")
@pytest.mark.parametrize("part", PARTS)
def test_on_is_on_where_it_can_be_had(part):
    made, refused = options(CUDA, **{"convolutions": "on", "stem": "on", part: "on"})
    assert part in used(made)
    assert not refused


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"graph": "on"}, "engine.graph: not used, needs CUDA"),
        ({"streams": "on"}, "engine.streams: not used, needs CUDA"),
        ({"kernels": "on"}, "engine.kernels: not used, needs CUDA"),
        ({"fold": "off", "chain": "on"}, "engine.chain: not used, needs engine.fold"),
        ({"chain": "off", "stem": "on"}, "engine.stem: not used, needs engine.chain and engine.kernels"),
        ({"stem": "on"}, "engine.stem: not used, needs engine.kernels"),
        (
            {"other_convolutions": "on"},
            "engine.other_convolutions: not used, needs engine.convolutions",
        ),
    ],
)
def test_on_where_it_cannot_be_had_is_told_in_one_line(switches, reason):
    made, refused = options(**switches)
    assert refused == [reason]
    assert next(name for name, value in switches.items() if value == "on") not in used(made)


@pytest.mark.usefixtures("_triton_and_compiler")
@pytest.mark.parametrize(
    ("precision", "others", "reason"),
    [
        ("fp32", {}, "needs bf16 or fp16"),
        ("bf16", {"chain": "off"}, "needs engine.chain"),
        ("bf16", {"fold": "off", "kernels": "off"}, "needs engine.chain and engine.kernels"),
    ],
)
def test_own_convolutions_need_a_chain_kernels_and_half_precision(precision, others, reason):
    made, refused = options(CUDA, precision, convolutions="on", **others)
    assert refused == [f"engine.convolutions: not used, {reason}"]
    assert "convolutions" not in used(made)


def of_capability(monkeypatch, capability):
    older = replace(H200, name="an older one", capability=capability)
    monkeypatch.setattr("fastpeer.step.options.describe_device", lambda device: older)


@pytest.mark.usefixtures("_triton_and_compiler")
def test_own_convolutions_need_ampere(monkeypatch):
    of_capability(monkeypatch, "7.5")
    _, refused = options(CUDA, convolutions="on")
    assert refused == ["engine.convolutions: not used, needs a GPU of compute capability 8.0 or more"]


@pytest.mark.usefixtures("_triton_and_compiler")
def test_what_the_copy_engine_brought_says_nothing_of_a_gpu_without(monkeypatch):
    of_capability(monkeypatch, "8.0")
    monkeypatch.setattr(
        "fastpeer.step.measured.shipped_gains", lambda: [gain("convolutions", 2.0), gain("merge", 0.9)]
    )
    made, _ = options(CUDA)
    assert made.reasons["convolutions"] == "a guess"
    assert made.reasons["merge"] == "measured 0.9× on NVIDIA H200"
    assert not {"convolutions", "stem", "merge"} & used(made)
    assert options(CUDA, convolutions="on")[0].convolutions


@pytest.mark.usefixtures("_triton_and_compiler")
def test_double_precision_does_without_triton():
    assert not used(options(CUDA, "fp64", batchnorm="on")[0]) & {"kernels", "batchnorm"}


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert options(compile="on")[1] == ["engine.compile: not used, needs a C++ compiler"]


def test_every_part_is_described_with_its_reason():
    made, _ = options(merge="off")
    lines = made.describe()
    measured = "measured on AMD EPYC with resnet18, 32×32, batch 32, bf16"
    assert lines[0] == f"engine: fold, chain ({measured})"
    for name in set(PARTS) - used(made):
        assert f"{name} (" in lines[1]
    assert "merge (engine.merge = off)" in lines[1]
    assert Options().describe() == ["engine: no fast part"]


def test_without_triton_cuda_does_without_compiling_and_kernels(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made, refused = options(CUDA)
    assert used(made) == {"fold", "chain", "merge", "graph"}
    assert not refused


def test_without_a_c_compiler_cuda_does_without_compiling_and_kernels(monkeypatch):
    # Triton compiles the code that launches its kernels.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)
    made, refused = options(CUDA, compile="on", kernels="on")
    assert refused == [f"engine.{name}: not used, needs a C compiler" for name in ("compile", "kernels")]
    assert used(made) == {"fold", "chain", "merge", "graph"}
