"""The table of what each part brought, and which of its rows is taken."""

from dataclasses import fields, replace

import pytest

from fastpeer.config import EngineConfig
from fastpeer.step.measured import Device, Gain, Workload, nearest_gain, shipped_gains

WORK = Workload(network="resnet18", size=32, batch=128, precision="bf16")
H200 = Device(kind="cuda", name="NVIDIA H200", capability="9.0")
A100 = Device(kind="cuda", name="NVIDIA A100-SXM4-80GB", capability="8.0")


def gain(ratio, device=H200, workload=WORK, part="fold"):
    return Gain(part=part, ratio=ratio, device=device, workload=workload, commit="0", date="2026-01-01")


def found(gains, device=H200, workload=WORK):
    nearest = nearest_gain("fold", device, workload, gains)
    return None if nearest is None else nearest.ratio


def test_the_shipped_table_names_parts_of_the_engine_and_plausible_gains():
    parts = {field.name for field in fields(EngineConfig)}
    assert {one.part for one in shipped_gains()} <= parts
    assert all(0.01 < one.ratio < 100 for one in shipped_gains())
    assert all(one.commit and one.date and one.device.name for one in shipped_gains())


@pytest.mark.parametrize(
    ("asked", "ratio"),
    [
        (H200, 1.0),
        (A100, 2.0),
        (Device(kind="cuda", name="NVIDIA H100 80GB HBM3", capability="9.0"), 1.0),
        (Device(kind="cuda", name="NVIDIA GeForce RTX 3090", capability="8.6"), 1.0),
        (Device(kind="cuda", name="Tesla V100", capability="7.0"), 2.0),
        (Device(kind="cpu", name="AMD EPYC"), None),
    ],
)
def test_the_nearest_device_of_the_kind_is_taken(asked, ratio):
    assert found([gain(1.0), gain(2.0, A100)], asked) == ratio


def test_on_a_device_the_nearest_work_is_taken():
    rows = {
        1.0: WORK,
        2.0: replace(WORK, size=64),
        3.0: replace(WORK, network="mobilenetv2"),
        4.0: replace(WORK, precision="fp32"),
        5.0: replace(WORK, batch=512),
    }
    gains = [gain(ratio, workload=work) for ratio, work in rows.items()]
    for ratio, work in rows.items():
        assert found(gains, workload=work) == ratio
    assert found(gains, workload=replace(WORK, network="resnet34", batch=1024)) == 5.0
    # The size of the images is not always known.
    assert found(gains, workload=replace(WORK, size=0)) == 1.0
    assert found(gains, workload=replace(WORK, network="", size=0, batch=0, precision="fp32")) == 4.0


def test_another_part_says_nothing():
    assert found([gain(1.0, part="merge")]) is None
