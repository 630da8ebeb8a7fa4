"""What the engine's settings come to."""

from dataclasses import fields

import pytest
import torch

from fastpeer.config import EngineConfig
from fastpeer.engine.plan import Plan, make_plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PARTS = [field.name for field in fields(EngineConfig)]


def plan(device=CPU, precision="bf16", **switches):
    said = []
    return make_plan(EngineConfig(**switches), device, precision, said.append), said


@pytest.fixture
def _triton_and_compiler(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)


def used(made):
    return {name for name in PARTS if getattr(made, name)}


def test_auto_takes_what_a_cpu_gains_by_and_says_nothing():
    made, said = plan()
    assert used(made) == {"fold", "chain", "merge"}
    assert not said


@pytest.mark.usefixtures("_triton_and_compiler")
def test_auto_takes_all_but_streams_on_cuda():
    made, said = plan(CUDA)
    assert used(made) == set(PARTS) - {"streams"}
    assert not said


@pytest.mark.parametrize("part", PARTS)
def test_off_is_off(part):
    for device in (CPU, CUDA):
        made, said = plan(device, **{part: "off"})
        assert part not in used(made)
        assert not said


@pytest.mark.usefixtures("_triton_and_compiler")
@pytest.mark.parametrize("part", PARTS)
def test_on_is_on_where_it_can_be_had(part):
    made, said = plan(CUDA, **{part: "on"})
    assert part in used(made)
    assert not said


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"graph": "on"}, "engine.graph: not used, needs CUDA"),
        ({"streams": "on"}, "engine.streams: not used, needs CUDA"),
        ({"kernels": "on"}, "engine.kernels: not used, needs CUDA"),
        ({"fold": "off", "chain": "on"}, "engine.chain: not used, needs engine.fold"),
    ],
)
def test_on_where_it_cannot_be_had_is_said_in_one_line(switches, reason):
    made, said = plan(**switches)
    assert said == [reason]
    assert next(name for name, value in switches.items() if value == "on") not in used(made)


@pytest.mark.usefixtures("_triton_and_compiler")
def test_double_precision_does_without_triton():
    assert "kernels" not in used(plan(CUDA, "fp64")[0])


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert plan(compile="on")[1] == ["engine.compile: not used, needs a C++ compiler"]


def test_every_part_is_described_with_its_reason():
    made, _ = plan(merge="off")
    lines = made.describe()
    assert lines[0] == "engine: fold, chain"
    for name in set(PARTS) - used(made):
        assert f"{name} (" in lines[1]
    assert "merge (engine.merge = off)" in lines[1]
    assert Plan().describe() == ["engine: no fast part"]


def test_without_triton_cuda_does_without_compiling_and_kernels(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made, said = plan(CUDA)
    assert used(made) == {"fold", "chain", "merge", "graph"}
    assert not said
